//! The work of `refit serve` on runs.

use super::Evals;
use super::work::Work;
use crate::jobs::batch::Endpoint;
use crate::jobs::heart::Holder;
use crate::jobs::served::{self, Claimed, Served};
use crate::store::openai_evals::{self as rows, JOB_KIND};
use crate::store::{Db, Store, StoreError};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::sync::{Notify, watch};

impl Served for Evals {
    const KIND: &'static str = JOB_KIND;
    const AT_ONCE: (usize, usize) = (16, 4);

    fn store(&self) -> &Store {
        &self.store
    }

    fn state(&self) -> (&AtomicUsize, &Notify) {
        (&self.running, &self.woken)
    }

    fn queued(db: &dyn Db) -> Result<Vec<(String, String)>, StoreError> {
        rows::queued(db)
    }

    fn work(self: Arc<Self>, on: Claimed) -> BoxFuture<'static, ()> {
        let Claimed { job, owner, endpoint, stop } = on;
        let holder = Holder { store: self.store.clone(), keys: self.keys.clone(), job, owner };
        Box::pin(Work { desk: self, endpoint, holder, stop }.run())
    }
}

impl Evals {
    /// Works until `stop` becomes true, then leaves what is not done to the next server of this data directory.
    pub async fn run(self: Arc<Self>, endpoint: Arc<dyn Endpoint>, stop: watch::Receiver<bool>) {
        served::serve(self, endpoint, stop).await;
    }
}
