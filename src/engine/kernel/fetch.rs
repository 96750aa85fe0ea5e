//! Memory that is asked for while a thread multiplies something else: with few rows a product is bound by arithmetic, and memory has time
//! to spare. What is asked for is a hint alone: nothing is read, and what does not fit is left out.

use super::dots::Dots;
use std::ops::Range;

/// Bytes of a line of the processor's caches.
const CACHE_LINE: usize = 64;
/// Ranges that are kept; those beyond are read when they are needed.
const RANGES: usize = 64;
/// Bytes that are asked for at a time, at most: more would push one another out of the second-level cache.
const MOST_BYTES: usize = 640 << 10;

/// What is asked for, in order, evenly over the blocks of a product.
pub(super) struct Fetch {
    /// Addresses: beginning and end.
    ranges: [(usize, usize); RANGES],
    count: usize,
    lines: usize,
    /// The range that is asked for next.
    next: usize,
    /// Place in the current range, and its end.
    at: usize,
    end: usize,
    /// Lines for each block.
    each: usize,
}

/// Who asks: the instructions of a [`Dots`].
pub(super) trait Ask {
    fn ask(address: usize);
}

impl<D: Dots> Ask for D {
    #[inline(always)]
    fn ask(address: usize) {
        D::fetch(address);
    }
}

impl Fetch {
    /// Nothing.
    pub(super) fn new() -> Self {
        Fetch { ranges: [(0, 0); RANGES], count: 0, lines: 0, next: 0, at: 0, end: 0, each: 0 }
    }

    /// Adds a range of addresses, or its beginning if it is too much.
    pub(super) fn add(&mut self, range: Range<usize>) {
        let start = range.start / CACHE_LINE * CACHE_LINE;
        let lines = range.end.saturating_sub(start).div_ceil(CACHE_LINE).min(MOST_BYTES / CACHE_LINE - self.lines);
        if range.is_empty() || lines == 0 || self.count == RANGES {
            return;
        }
        self.ranges[self.count] = (start, start + lines * CACHE_LINE);
        (self.count, self.lines) = (self.count + 1, self.lines + lines);
    }

    /// The same, to be asked for during `blocks` blocks.
    pub(super) fn over(mut self, blocks: usize) -> Self {
        self.each = self.lines.div_ceil(blocks.max(1));
        self.begin();
        self
    }

    /// Lines that are asked for.
    #[cfg(test)]
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// Begins the next range, or ends.
    #[inline(always)]
    fn begin(&mut self) {
        if self.next < self.count {
            (self.at, self.end) = self.ranges[self.next];
            self.next += 1;
        } else {
            (self.at, self.end, self.each) = (0, 0, 0);
        }
    }

    /// Asks for the share of one block.
    #[inline(always)]
    pub(super) fn some<A: Ask>(&mut self) {
        let mut left = self.each;
        while left > 0 {
            // Up to the end of the range without a look at it.
            let stop = self.at + (left * CACHE_LINE).min(self.end - self.at);
            left -= (stop - self.at) / CACHE_LINE;
            while self.at < stop {
                A::ask(self.at);
                self.at += CACHE_LINE;
            }
            if self.at == self.end {
                self.begin();
                left = left.min(self.each);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        static ASKED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    struct Recorder;

    impl Ask for Recorder {
        fn ask(address: usize) {
            ASKED.with_borrow_mut(|asked| asked.push(address));
        }
    }

    /// Addresses that are asked for, and the most for one block.
    fn asked(ranges: &[Range<usize>], blocks: usize) -> (Vec<usize>, usize) {
        let mut fetch = Fetch::new();
        ranges.iter().for_each(|range| fetch.add(range.clone()));
        let mut fetch = fetch.over(blocks);
        let mut most = 0;
        for _ in 0..blocks {
            let before = ASKED.with_borrow(Vec::len);
            fetch.some::<Recorder>();
            most = most.max(ASKED.with_borrow(Vec::len) - before);
        }
        (ASKED.take(), most)
    }

    #[test]
    fn every_line_is_asked_for_once_in_order_and_evenly() {
        let ranges = [6400..7040, 0..0, 100_032..100_033, 128..320];
        let lines: Vec<usize> = (6400..7040).step_by(64).chain([100_032]).chain((128..320).step_by(64)).collect();
        assert_eq!(lines.len(), 14);
        for (blocks, most) in [(1, 14), (3, 5), (14, 1), (40, 1)] {
            assert_eq!(asked(&ranges, blocks), (lines.clone(), most), "{blocks} blocks");
        }
        assert_eq!(asked(&[], 5), (Vec::new(), 0));
    }

    #[test]
    fn too_much_is_cut_off() {
        let (asked, _) = asked(&[0..64, 1 << 20..1 << 30, 0..64], 10);
        assert_eq!((asked.len(), asked[1]), (MOST_BYTES / 64, 1 << 20));
        let many = vec![64..128; 2 * RANGES];
        assert_eq!(self::asked(&many, 3).0.len(), RANGES);
    }
}
