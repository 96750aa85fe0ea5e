//! Looks at the configuration file: each second, and at SIGHUP. It is read whole each time, because what tells a change apart
//! otherwise (time, size, inode) is not kept by every editor, file system or volume; a few kilobytes a second cost microseconds.

use crate::app::{App, Trigger};
use crate::config::live::Seen;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Pause between looks.
const LOOK: Duration = Duration::from_secs(1);
/// A file that changed is believed once it has been the same for so long: not every editor replaces it in one step.
const SETTLED: Duration = Duration::from_millis(150);
/// Looks for it to settle; a file that never does is taken as it is.
const LOOKS: usize = 20;

/// Puts changes of the file in force until it is dropped. `hangups` counts SIGHUP.
pub async fn watch(app: Arc<App>, mut hangups: watch::Receiver<u32>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Ok(()) = hangups.changed() => {
                let seen = look(&app).await;
                reload(&app, Trigger::Signal, seen).await;
            }
            _ = ticks.tick() => {
                let seen = look(&app).await;
                if seen.as_ref().is_some_and(|seen| app.live.is_new(seen)) {
                    let seen = settled(&app, seen).await;
                    reload(&app, Trigger::File, seen).await;
                }
            }
        }
    }
}

/// What the file holds once nobody writes it any more.
async fn settled(app: &Arc<App>, mut seen: Option<Seen>) -> Option<Seen> {
    for _ in 0..LOOKS {
        tokio::time::sleep(SETTLED).await;
        let again = look(app).await;
        if again == seen {
            break;
        }
        seen = again;
    }
    seen
}

async fn look(app: &Arc<App>) -> Option<Seen> {
    let app = app.clone();
    tokio::task::spawn_blocking(move || app.live.look()).await.ok()
}

async fn reload(app: &Arc<App>, trigger: Trigger, seen: Option<Seen>) {
    let Some(seen) = seen else { return };
    let app = app.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || app.reload(trigger, seen)).await {
        tracing::error!(%error, "the configuration could not be reloaded; what was in force stays");
    }
}
