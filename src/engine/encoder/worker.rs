//! The thread that owns an embedding model. Requests wait in a bounded queue; those that wait together share steps, and a large one does
//! not hold up a small one: each step takes texts from all of them in turn. Requests whose caller went away are dropped.

use super::Embedder;
use crate::engine::EngineError;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// Tokens of one step, all requests together.
const STEP_TOKENS: usize = 4_096;

/// How an embedding model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderOptions {
    /// Worker threads; 0 takes all cores.
    pub threads: usize,
    /// Requests that may wait.
    pub max_queue: usize,
}

/// A handle to the thread. Dropping the last one ends it.
pub struct Encoder {
    model: Arc<Embedder>,
    queue: SyncSender<Request>,
    max_queue: usize,
}

struct Request {
    texts: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, EngineError>>,
}

impl Encoder {
    /// Starts the thread of a loaded model.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] when threads cannot be started.
    pub fn start(model: Arc<Embedder>, options: EncoderOptions) -> Result<Self, EngineError> {
        let max_queue = options.max_queue.max(1);
        let (queue, requests) = sync_channel(max_queue);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).thread_name(|i| format!("encoder-{i}")).build();
        let pool = pool.map_err(|_| EngineError::Stopped)?;
        let worker = Worker { model: model.clone(), requests, under_way: VecDeque::new() };
        let thread = std::thread::Builder::new().name("encoder".into()).spawn(move || pool.install(|| worker.run()));
        thread.map_err(|_| EngineError::Stopped)?;
        Ok(Encoder { model, queue, max_queue })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Embedder> {
        &self.model
    }

    /// Vectors of length one of texts as token ids, in their order. Dropping the future drops the request.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] when too many wait, [`EngineError::TooLong`] for a text beyond the model's length,
    /// [`EngineError::Request`] for unknown ids, [`EngineError::Stopped`] when the thread is gone.
    pub async fn embed(&self, texts: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>, EngineError> {
        let limit = self.model.max_tokens();
        for (index, tokens) in texts.iter().enumerate() {
            self.model.check(tokens)?;
            if tokens.len() > limit {
                return Err(EngineError::TooLong { index, tokens: tokens.len(), limit });
            }
        }
        let (reply, replied) = oneshot::channel();
        let vectors = Vec::with_capacity(texts.len());
        self.queue.try_send(Request { texts, vectors, reply }).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::QueueFull(self.max_queue),
            TrySendError::Disconnected(_) => EngineError::Stopped,
        })?;
        replied.await.map_err(|_| EngineError::Stopped)?
    }
}

struct Worker {
    model: Arc<Embedder>,
    requests: Receiver<Request>,
    /// Requests that have texts left, the next to be served first.
    under_way: VecDeque<Request>,
}

impl Worker {
    fn run(mut self) {
        while self.receive() {
            self.under_way.retain(|request| !request.reply.is_closed());
            // A bug in a step must not take the model away from everybody until a restart.
            if catch_unwind(AssertUnwindSafe(|| self.step())).is_err() {
                tracing::error!("a step of the encoder panicked");
                for request in self.under_way.drain(..) {
                    let error = candle_core::Error::Msg("a step of the encoder panicked".into());
                    let _ = request.reply.send(Err(error.into()));
                }
            }
            self.answer();
        }
    }

    /// Takes what waits; blocks when there is nothing to do. Returns whether to go on.
    fn receive(&mut self) -> bool {
        if self.under_way.is_empty() {
            let Ok(request) = self.requests.recv() else { return false };
            self.under_way.push_back(request);
        }
        loop {
            let tokens: usize = self.under_way.iter().map(|request| request.tokens_left()).sum();
            if tokens >= 2 * STEP_TOKENS {
                return true;
            }
            match self.requests.try_recv() {
                Ok(request) => self.under_way.push_back(request),
                Err(TryRecvError::Empty) => return true,
                // Every handle is gone: nobody waits for an answer any more.
                Err(TryRecvError::Disconnected) => return !self.under_way.is_empty(),
            }
        }
    }

    /// One step: texts of all requests in turn, until there are enough.
    fn step(&mut self) {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let (mut tokens, mut round) = (0, 0);
        while tokens < STEP_TOKENS {
            let before = taken.len();
            for (i, request) in self.under_way.iter().enumerate() {
                let Some(text) = request.texts.get(request.vectors.len() + round).filter(|_| tokens < STEP_TOKENS) else { continue };
                taken.push((i, request.vectors.len() + round));
                tokens += text.len();
            }
            if taken.len() == before {
                break;
            }
            round += 1;
        }
        let texts: Vec<&[u32]> = taken.iter().map(|(request, text)| self.under_way[*request].texts[*text].as_slice()).collect();
        let vectors = self.model.embed(&texts);
        for ((request, _), vector) in taken.iter().zip(vectors) {
            self.under_way[*request].vectors.push(vector);
        }
    }

    /// Answers the requests that are done.
    fn answer(&mut self) {
        for _ in 0..self.under_way.len() {
            let Some(request) = self.under_way.pop_front() else { return };
            if request.vectors.len() == request.texts.len() {
                // Nobody may be waiting any more.
                let _ = request.reply.send(Ok(request.vectors));
            } else {
                self.under_way.push_back(request);
            }
        }
    }
}

impl Request {
    fn tokens_left(&self) -> usize {
        self.texts[self.vectors.len()..].iter().map(Vec::len).sum()
    }
}
