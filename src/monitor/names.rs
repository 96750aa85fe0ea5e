//! The other names of logged requests, learned when somebody asks for one. One at a time looks through the log, for all who wait, and
//! rests for a while after that: whoever asks for names without end keeps a fraction of one core busy.

use super::Recorder;
use crate::store::Store;
use crate::store::feedback::learn_names;
use crate::types::Failure;
use crate::types::blocking::blocking;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Rest after a look, as a multiple of what it took, and at most.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Who looks for names.
pub struct Names {
    store: Store,
    recorder: Arc<Recorder>,
    last: Arc<Mutex<Option<Look>>>,
}

/// The last look through the log.
#[derive(Clone, Copy)]
struct Look {
    began: Instant,
    rests_until: Instant,
}

impl Names {
    /// Over a log.
    pub fn new(store: &Store, recorder: &Arc<Recorder>) -> Self {
        Names { store: store.clone(), recorder: recorder.clone(), last: Arc::default() }
    }

    /// Every row that was written before this call is found by its id after it.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn move_rows(&self) -> Result<(), Failure> {
        let recorder = self.recorder.clone();
        blocking(move || {
            flush(&recorder);
            Ok(())
        })
        .await
    }

    /// Every row that was written before this call is found by its names after it. Where rows cannot be moved to the database now, what it
    /// has is what can be found.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn learn(&self) -> Result<(), Failure> {
        let asked = Instant::now();
        let mut last = self.last.clone().lock_owned().await;
        if let Some(look) = *last {
            if look.began >= asked {
                return Ok(());
            }
            sleep_until(look.rests_until).await;
        }
        let (db, recorder) = (self.store.db.clone(), self.recorder.clone());
        blocking(move || {
            let began = Instant::now();
            flush(&recorder);
            let learned = learn_names(db.as_ref());
            // Held until here also where the caller has gone: a look that nobody waits for is one, too.
            *last = learned.is_ok().then(|| Look { began, rests_until: Instant::now() + (began.elapsed() * REST).min(LONGEST_REST) });
            Ok(learned?)
        })
        .await
    }
}

fn flush(recorder: &Recorder) {
    if let Err(error) = recorder.flush() {
        tracing::warn!(%error, "requests are looked for without the newest log rows");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Metrics;

    #[tokio::test]
    async fn those_who_wait_share_a_look_and_the_next_one_comes_after_a_rest() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path()).expect("a store");
        let recorder = Arc::new(Recorder::open(&store, Arc::new(Metrics::new())).expect("a recorder"));
        let names = Names::new(&store, &recorder);
        let began = async || names.last.lock().await.map(|look| look.began);
        let held = names.last.clone().lock_owned().await;
        let (one, two) = (names.learn(), names.learn());
        let (one, two, ()) = tokio::join!(one, two, async { drop(held) });
        one.and(two).expect("learned");
        let first = began().await.expect("a look");
        *names.last.lock().await = Some(Look { began: first, rests_until: Instant::now() + Duration::from_millis(300) });
        names.learn().await.expect("learned");
        assert!(began().await.expect("a look") - first >= Duration::from_millis(300));
    }
}
