//! How many prompt rows share a step with sequences that are decoding: as many as the machine computes in a bounded time, so that a long
//! prompt slows the others' tokens by that much and no more.

use std::time::Duration;

/// Rows of prompts in a step when nobody decodes.
const MOST_ROWS: usize = 512;
/// Rows of prompts in a step at the least: a prompt must get on however slow the machine is.
const LEAST_ROWS: usize = 16;
/// What a step with prompt rows should take while others decode.
const STEP: Duration = Duration::from_millis(120);
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// Measured speed of prompt rows.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds for a row; 0 before the first measurement.
    row_s: f64,
}

impl Pace {
    /// A step with these rows per sequence took so long.
    pub(super) fn note(&mut self, rows: impl Iterator<Item = usize>, took: Duration) {
        let rows: Vec<usize> = rows.collect();
        let prompt: usize = rows.iter().filter(|rows| **rows > 1).sum();
        if prompt < LEAST_ROWS {
            return;
        }
        // Rows of decoding sequences cost about as much as prompt rows where most rows are prompt rows.
        let row_s = took.as_secs_f64() / rows.iter().sum::<usize>() as f64;
        self.row_s = if self.row_s == 0.0 { row_s } else { self.row_s + NEWEST * (row_s - self.row_s) };
    }

    /// Prompt rows of the next step.
    pub(super) fn prompt_rows(&self, others_decode: bool) -> usize {
        if !others_decode {
            return MOST_ROWS;
        }
        if self.row_s == 0.0 {
            return LEAST_ROWS;
        }
        let rows = (STEP.as_secs_f64() / self.row_s) as usize;
        // Whole multiples: the kernels work on blocks of rows.
        (rows / LEAST_ROWS * LEAST_ROWS).clamp(LEAST_ROWS, MOST_ROWS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_get_the_rows_that_fit_into_a_step() {
        let mut pace = Pace::default();
        assert_eq!((pace.prompt_rows(false), pace.prompt_rows(true)), (512, 16));
        // 2 ms a row: 60 rows take 120 ms, 48 are whole blocks.
        pace.note([256, 1, 1].into_iter(), Duration::from_millis(516));
        assert_eq!((pace.prompt_rows(false), pace.prompt_rows(true)), (512, 48));
        pace.note([1, 1].into_iter(), Duration::from_secs(9));
        assert_eq!(pace.prompt_rows(true), 48, "steps without prompts say nothing of prompts");
    }

    #[test]
    fn a_slow_machine_still_gets_on_and_a_fast_one_takes_whole_chunks() {
        let mut slow = Pace::default();
        slow.note([512].into_iter(), Duration::from_secs(512));
        assert_eq!(slow.prompt_rows(true), 16);
        let mut fast = Pace::default();
        fast.note([512].into_iter(), Duration::from_millis(5));
        assert_eq!(fast.prompt_rows(true), 512);
    }
}
