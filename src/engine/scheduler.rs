//! The worker thread that owns a model: it admits requests from a bounded queue, shares each step among all running sequences
//! (continuous batching, Yu et al. 2022, "Orca"), computes long prompts in chunks so that they do not stall the others, and reports
//! tokens through channels. Async code never touches a tensor.

use super::arch::{Batch, Mode};
use super::kernel::pool::Pool;
use super::kv_cache::KvCache;
use super::model::Model;
use super::nn::slices::with_slice;
use super::prefix::{Plan, SlotContent, free_slot, plan};
use super::sequence::{Generate, Sequence};
use super::{Adapter, EngineError};
use candle_core::Tensor;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Instant;

/// Prompt tokens computed in one step, all sequences together.
const PREFILL_CHUNK: usize = 512;
/// Slots beyond the running sequences, which keep recent prompts for reuse.
const SPARE_SLOTS: usize = 4;
/// Memory that keys and values may take.
const CACHE_BYTES: usize = 2 << 30;

/// How the engine runs a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Worker threads; 0 takes all cores.
    pub threads: usize,
    /// Sequences that share a step.
    pub max_batch: usize,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Tokens of a sequence, prompt and reply.
    pub max_context: usize,
}

/// A handle to the worker thread. Dropping the last one ends the thread.
pub struct Engine {
    model: Arc<Model>,
    queue: SyncSender<(Generate, Instant)>,
    waiting: Arc<AtomicUsize>,
    options: EngineOptions,
}

impl Engine {
    /// Starts the thread of a loaded model.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] when threads cannot be started.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self, EngineError> {
        let (queue, requests) = sync_channel(options.max_queue.max(1));
        let waiting = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(options.threads).map_err(|_| EngineError::Stopped)?;
        let worker = Worker::new(model.clone(), &options, requests, waiting.clone());
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || pool.install(|| worker.run()));
        thread.map_err(|_| EngineError::Stopped)?;
        Ok(Engine { model, queue, waiting, options })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Requests accepted and not yet started.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tokens that prompt and reply may have together.
    pub fn context(&self) -> usize {
        self.options.max_context.min(self.model.decoder.config().context)
    }

    /// Queues a request; its events follow on its channel. `max_tokens` is cut to what the context still holds.
    ///
    /// # Errors
    /// [`EngineError::ContextLength`] when the prompt alone does not fit, [`EngineError::QueueFull`] when too many wait,
    /// [`EngineError::Stopped`] when the thread is gone.
    pub fn submit(&self, mut request: Generate) -> Result<(), EngineError> {
        let (prompt, context) = (request.tokens.len(), self.context());
        if prompt == 0 {
            return Err(EngineError::Request { param: "messages", problem: "give no tokens".into() });
        }
        if prompt >= context {
            return Err(EngineError::ContextLength { prompt, context });
        }
        request.max_tokens = request.max_tokens.clamp(1, context - prompt);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.queue.try_send((request, Instant::now())).map_err(|error| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => EngineError::QueueFull(self.waiting()),
                TrySendError::Disconnected(_) => EngineError::Stopped,
            }
        })
    }
}

struct Worker {
    model: Arc<Model>,
    requests: Receiver<(Generate, Instant)>,
    waiting: Arc<AtomicUsize>,
    /// Taken from the channel, not yet started.
    pending: VecDeque<(Generate, Instant)>,
    running: Vec<Sequence>,
    slots: Vec<SlotContent>,
    cache: KvCache,
    max_batch: usize,
    step: u64,
}

impl Worker {
    fn new(model: Arc<Model>, options: &EngineOptions, requests: Receiver<(Generate, Instant)>, waiting: Arc<AtomicUsize>) -> Self {
        let max_batch = options.max_batch.max(1);
        let slots = max_batch + SPARE_SLOTS;
        let config = model.decoder.config();
        let cache = KvCache::new(slots, config.layers, config.heads);
        let slots = vec![SlotContent::default(); slots];
        Worker { model, requests, waiting, pending: VecDeque::new(), running: Vec::new(), slots, cache, max_batch, step: 0 }
    }

    fn run(mut self) {
        while self.receive() {
            self.admit();
            self.step += 1;
            if self.running.is_empty() {
                continue;
            }
            // A bug in a step must not take the model away from everybody until a restart.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.advance()));
            let outcome = outcome.unwrap_or_else(|_| Err(candle_core::Error::Msg("a step of the engine panicked".into()).into()));
            if let Err(error) = outcome {
                tracing::error!(%error, "an engine step failed");
                self.fail_all(&error);
            }
        }
    }

    /// Takes what waits in the channel; blocks when there is nothing to do. Returns whether to go on.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.pending.is_empty() {
            let Ok(request) = self.requests.recv() else { return false };
            self.pending.push_back(request);
        }
        while self.pending.len() < self.max_batch {
            match self.requests.try_recv() {
                Ok(request) => self.pending.push_back(request),
                Err(TryRecvError::Empty) => break,
                // Every handle is gone: finish what runs.
                Err(TryRecvError::Disconnected) => return !self.running.is_empty() || !self.pending.is_empty(),
            }
        }
        true
    }

    /// Starts pending requests, in order; one that waits for another's prompt does not hold up the ones behind it.
    fn admit(&mut self) {
        for _ in 0..self.pending.len() {
            let Some((request, accepted)) = self.pending.pop_front() else { break };
            if request.events.is_closed() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            if let Err(request) = self.start(request, accepted) {
                self.pending.push_back((request, accepted));
            }
        }
    }

    fn start(&mut self, request: Generate, accepted: Instant) -> Result<(), Generate> {
        if self.running.len() >= self.max_batch || !self.make_room(request.tokens.len() + request.max_tokens) {
            return Err(request);
        }
        let Plan::Start { from, positions } = plan(&request.tokens, request.adapter.as_ref(), &self.slots) else { return Err(request) };
        let Some(slot) = free_slot(&self.slots, from, positions) else { return Err(request) };
        if positions > 0 {
            self.cache.copy(from, slot, positions);
        } else {
            self.cache.free(slot);
        }
        let mut sequence = Sequence::new(request, accepted, slot);
        (sequence.computed, sequence.cached_tokens) = (positions, positions);
        let (tokens, adapter) = (sequence.tokens.clone(), sequence.adapter.clone());
        self.slots[slot] = SlotContent { tokens, computed: positions, adapter, busy: true, used: self.step };
        self.running.push(sequence);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Frees idle slots, longest unused first, until a sequence of that many tokens fits in memory. One always fits.
    fn make_room(&mut self, tokens: usize) -> bool {
        let capacity = CACHE_BYTES / self.cache.bytes_per_position();
        loop {
            let reserved: usize = self.running.iter().map(Sequence::reserved).sum();
            let idle: usize = self.slots.iter().filter(|slot| !slot.busy).map(|slot| slot.computed).sum();
            if reserved + idle + tokens <= capacity || (self.running.is_empty() && idle == 0) {
                return true;
            }
            let oldest =
                self.slots.iter().enumerate().filter(|(_, slot)| !slot.busy && slot.computed > 0).min_by_key(|(_, slot)| slot.used);
            let Some((index, _)) = oldest else { return false };
            self.slots[index] = SlotContent::default();
            self.cache.free(index);
        }
    }

    /// One step: the next rows of every sequence through the model, then one token for each whose prompt is complete.
    fn advance(&mut self) -> Result<(), EngineError> {
        let abandoned: Vec<bool> = self.running.iter().map(Sequence::abandoned).collect();
        self.retire(&abandoned);
        let (batch, members) = self.compose();
        if members.is_empty() {
            return Ok(());
        }
        let adapters = self.adapter_ranges(&batch, &members);
        let hidden = self.model.decoder.hidden(&batch, Mode::Infer { cache: &mut self.cache, adapters: &adapters })?;
        let mut complete = Vec::new();
        for (member, segment) in members.iter().zip(&batch.segments) {
            let sequence = &mut self.running[*member];
            sequence.computed += segment.rows.len();
            self.slots[sequence.slot].computed = sequence.computed;
            if sequence.computed == sequence.tokens.len() {
                complete.push((*member, segment.rows.end - 1));
            }
        }
        self.sample(&hidden, &complete)
    }

    /// Rows of the next step: one for each decoding sequence, and prompt chunks up to the limit, handed out in the order of admission.
    fn compose(&self) -> (Batch, Vec<usize>) {
        let mut chosen = Vec::new();
        let mut budget = PREFILL_CHUNK;
        for (index, sequence) in self.running.iter().enumerate() {
            let left = sequence.tokens.len() - sequence.computed;
            let rows = if left == 1 { 1 } else { left.min(budget) };
            if left > 1 {
                budget -= rows;
            }
            if rows > 0 {
                chosen.push((index, rows));
            }
        }
        // Rows with the same adapter lie together, so that each adapter is applied to one range.
        chosen.sort_by_key(|(index, _)| self.running[*index].adapter.as_ref().map_or(0, |adapter| Arc::as_ptr(adapter) as usize));
        let mut batch = Batch::default();
        for (index, rows) in &chosen {
            let sequence = &self.running[*index];
            batch.push(&sequence.tokens[sequence.computed..sequence.computed + rows], sequence.slot, sequence.computed);
        }
        (batch, chosen.into_iter().map(|(index, _)| index).collect())
    }

    fn adapter_ranges(&self, batch: &Batch, members: &[usize]) -> Vec<(Range<usize>, Arc<Adapter>)> {
        let mut ranges: Vec<(Range<usize>, Arc<Adapter>)> = Vec::new();
        for (member, segment) in members.iter().zip(&batch.segments) {
            let Some(adapter) = &self.running[*member].adapter else { continue };
            match ranges.last_mut() {
                Some((range, last)) if Arc::ptr_eq(last, adapter) && range.end == segment.rows.start => range.end = segment.rows.end,
                _ => ranges.push((segment.rows.clone(), adapter.clone())),
            }
        }
        ranges
    }

    fn sample(&mut self, hidden: &Tensor, complete: &[(usize, usize)]) -> Result<(), EngineError> {
        if complete.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = complete.iter().map(|(_, row)| *row as u32).collect();
        let rows = Tensor::from_slice(&rows, rows.len(), hidden.device())?;
        let logits = self.model.decoder.logits(&hidden.index_select(&rows, 0)?)?;
        let vocabulary = logits.dim(1)?;
        let mut finished = vec![false; self.running.len()];
        with_slice(&logits, |logits| {
            for ((member, _), logits) in complete.iter().zip(logits.chunks_exact(vocabulary)) {
                finished[*member] = !self.running[*member].advance(logits, &self.model.tokenizer);
            }
        })?;
        self.retire(&finished);
        Ok(())
    }

    /// Takes sequences out of the batch; what they computed stays in their slots.
    fn retire(&mut self, finished: &[bool]) {
        let step = self.step;
        let mut index = 0;
        let slots = &mut self.slots;
        self.running.retain(|sequence| {
            let done = finished[index];
            index += 1;
            if done {
                let slot = &mut slots[sequence.slot];
                slot.tokens = sequence.tokens[..sequence.computed].to_vec();
                (slot.computed, slot.busy, slot.used) = (sequence.computed, false, step);
            }
            !done
        });
    }

    fn fail_all(&mut self, error: &EngineError) {
        for sequence in self.running.drain(..) {
            sequence.fail(EngineError::Tensor(candle_core::Error::Msg(error.to_string())));
            self.slots[sequence.slot] = SlotContent::default();
            self.cache.free(sequence.slot);
        }
    }
}
