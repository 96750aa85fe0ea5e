//! What a serving process knows about itself: its connections, whether it is on its way out, what became of the newest configuration,
//! and log rows that wait in memory. Gauges, so that `/metrics` and `/status` tell the same.

use crate::types::time::now_ms;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The state of serving. Clones share it.
#[derive(Clone, Default)]
pub struct Serving {
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections that the process's descriptors allow.
    pub connections_possible: Gauge,
    /// Connections that were turned away because too many were open.
    pub connections_refused: Counter,
    /// 1 from the signal to stop on.
    draining: Gauge,
    /// Whether the time to drain is over. Looked at whenever a connection does something: no lock.
    cut: Arc<AtomicBool>,
    /// 1 while the newest look at the configuration file found one that can be used.
    config_reload_ok: Gauge,
    config_loaded_at: Gauge,
    config_reloads: Counter,
    /// Log rows in memory that could not be written.
    pub(super) log_rows_kept: Gauge,
}

/// A connection, counted until it is dropped.
pub struct Connection(Gauge);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Serving {
    pub(super) fn register(&self, registry: &mut Registry) {
        self.config_loaded(now_ms());
        registry.register("connections", "Connections of clients that are open", self.connections.clone());
        let possible = "Connections that the file descriptors of the process allow";
        registry.register("connections_possible", possible, self.connections_possible.clone());
        let refused = "Connections turned away because server.max_connections were open";
        registry.register("connections_refused", refused, self.connections_refused.clone());
        registry.register("draining", "1 when the process has been told to stop", self.draining.clone());
        let ok = "1 when the configuration file as it is now is in force, 0 when it was refused";
        registry.register("config_reload_ok", ok, self.config_reload_ok.clone());
        let when = "When the configuration in force was read, seconds since the Unix epoch";
        registry.register("config_loaded_timestamp_seconds", when, self.config_loaded_at.clone());
        registry.register("config_reloads", "Changes of the configuration file that were applied", self.config_reloads.clone());
        registry.register("log_rows_kept", "Request-log rows in memory that could not be written to disk", self.log_rows_kept.clone());
    }

    /// Counts a connection, unless `limit` are open already.
    pub fn connect(&self, limit: usize) -> Option<Connection> {
        let open = self.connections.inc();
        let connection = Connection(self.connections.clone());
        if usize::try_from(open).unwrap_or(0) >= limit {
            self.connections_refused.inc();
            return None;
        }
        Some(connection)
    }

    /// The process was told to stop.
    pub fn drain(&self) {
        self.draining.set(1);
    }

    /// Whether the process was told to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.get() != 0
    }

    /// The time to drain is over.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Whether the time to drain is over: requests that still run are to end.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// The configuration in force is the one that was read then, milliseconds.
    pub fn config_loaded(&self, at: i64) {
        self.config_reload_ok.set(1);
        self.config_loaded_at.set(at / 1_000);
    }

    /// A changed configuration was put in force.
    pub fn config_reloaded(&self, at: i64) {
        self.config_reloads.inc();
        self.config_loaded(at);
    }

    /// The configuration file cannot be used.
    pub fn config_refused(&self) {
        self.config_reload_ok.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_connections_are_let_in_as_the_limit_says() {
        let serving = Serving::default();
        let (first, second) = (serving.connect(2), serving.connect(2));
        assert!(first.is_some() && second.is_some() && serving.connect(2).is_none());
        drop(first);
        assert!(serving.connect(2).is_some());
        assert_eq!((serving.connections.get(), serving.connections_refused.get()), (1, 1));
    }
}
