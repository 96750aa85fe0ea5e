//! The worker thread that owns a model: it admits requests from a bounded queue, shares each step among all running sequences
//! (continuous batching, Yu et al. 2022, "Orca"), computes long prompts in chunks so that they do not stall the others (Agrawal et al.
//! 2024, "Sarathi-Serve"), and reports tokens through channels. Async code never touches a tensor.

use super::arch::{Batch, Decoder, Mode};
use super::kernel::pool::{self, Pool};
use super::kv_cache::KvCache;
use super::model::Model;
use super::nn::slices::with_slice;
use super::pace::Pace;
use super::prefix::{Plan, SlotContent, free_slot, plan};
use super::queue::{Offered, Queue, Refused, Waiting};
use super::sequence::{Generate, Sequence};
use super::{Adapter, EngineError};
use candle_core::Tensor;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Slots beyond the running sequences, which keep recent prompts for reuse.
const SPARE_SLOTS: usize = 4;

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
    /// Memory that keys and values may take, running sequences and kept prompts together.
    pub cache_bytes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { threads: 0, max_batch: 24, max_queue: 256, max_context: 4096, cache_bytes: 2 << 30 }
    }
}

/// A handle to the worker thread. Dropping the last one ends the thread.
pub struct Engine {
    model: Arc<Model>,
    queue: Arc<Queue>,
    options: EngineOptions,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Engine {
    /// Starts the thread of a loaded model.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] when threads cannot be started.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self, EngineError> {
        let queue = Arc::new(Queue::new(options.max_queue, options.max_batch.max(1)));
        let pool = Pool::new(options.threads).map_err(|_| EngineError::Stopped)?;
        let worker = Worker::new(model.clone(), &options, queue.clone());
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || pool.install(|| worker.run()));
        thread.map_err(|_| EngineError::Stopped)?;
        Ok(Engine { model, queue, options })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Requests accepted and not yet started.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that can be accepted at once at the very most.
    pub fn room(&self) -> usize {
        self.options.max_batch.max(1) + self.options.max_queue
    }

    /// Tokens that prompt and reply may have together: what the settings, the model and the memory for keys and values allow.
    pub fn context(&self) -> usize {
        let config = self.model.decoder.config();
        self.options.max_context.min(config.context).min(capacity(&self.options, &self.model.decoder))
    }

    /// Queues a request; its events follow on its channel.
    ///
    /// # Errors
    /// As [`Engine::submit_all`].
    pub fn submit(&self, request: Generate) -> Result<(), EngineError> {
        self.submit_all(vec![request])
    }

    /// Queues requests, all or none; their events follow on their channels. `max_tokens` is cut to what the context still holds.
    ///
    /// # Errors
    /// [`EngineError::ContextLength`] when a prompt alone does not fit, [`EngineError::QueueFull`] when too many wait,
    /// [`EngineError::Stopped`] when the thread is gone.
    pub fn submit_all(&self, mut requests: Vec<Generate>) -> Result<(), EngineError> {
        let context = self.context();
        for request in &mut requests {
            let prompt = request.tokens.len();
            if prompt == 0 {
                return Err(EngineError::Request { param: "messages", problem: "give no tokens".into() });
            }
            if prompt >= context {
                return Err(EngineError::ContextLength { prompt, context });
            }
            request.max_tokens = request.max_tokens.clamp(1, context - prompt);
        }
        self.queue.push(requests).map_err(|refused| match refused {
            Refused::Full(waiting) => EngineError::QueueFull(waiting),
            Refused::Closed => EngineError::Stopped,
        })
    }
}

/// Positions that the memory for keys and values holds.
fn capacity(options: &EngineOptions, decoder: &Decoder) -> usize {
    let config = decoder.config();
    options.cache_bytes / KvCache::new(0, config.layers, config.heads).bytes_per_position().max(1)
}

struct Worker {
    model: Arc<Model>,
    queue: Arc<Queue>,
    running: Vec<Sequence>,
    slots: Vec<SlotContent>,
    cache: KvCache,
    /// Positions that the cache may hold.
    capacity: usize,
    max_batch: usize,
    pace: Pace,
    step: u64,
}

/// A worker that ends, however it ends, leaves nobody waiting.
impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.abort();
    }
}

impl Worker {
    fn new(model: Arc<Model>, options: &EngineOptions, queue: Arc<Queue>) -> Self {
        let max_batch = options.max_batch.max(1);
        let slots = max_batch + SPARE_SLOTS;
        let config = model.decoder.config();
        let cache = KvCache::new(slots, config.layers, config.heads);
        let capacity = capacity(options, &model.decoder);
        let slots = vec![SlotContent::default(); slots];
        Worker { model, queue, running: Vec::new(), slots, cache, capacity, max_batch, pace: Pace::default(), step: 0 }
    }

    fn run(mut self) {
        while !self.running.is_empty() || self.queue.wait() {
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

    /// Starts waiting requests, in turn; one that waits for another's prompt does not hold up the ones behind it.
    fn admit(&mut self) {
        let queue = self.queue.clone();
        queue.offer(self.max_batch - self.running.len(), |waiting| self.start(waiting));
    }

    fn start(&mut self, waiting: Waiting) -> Offered {
        let Waiting { request, .. } = &waiting;
        if self.running.len() >= self.max_batch || !self.make_room(request.tokens.len() + request.max_tokens) {
            return Offered::NoRoom(Box::new(waiting));
        }
        let Plan::Start { from, positions } = plan(&request.tokens, request.adapter.as_ref(), &self.slots) else {
            return Offered::Later(Box::new(waiting));
        };
        let Some(slot) = free_slot(&self.slots, from, positions) else { return Offered::NoRoom(Box::new(waiting)) };
        if positions > 0 {
            self.cache.copy(from, slot, positions);
        } else {
            self.cache.free(slot);
        }
        let mut sequence = Sequence::new(waiting.request, waiting.accepted, slot);
        (sequence.computed, sequence.cached_tokens) = (positions, positions);
        let (tokens, adapter) = (sequence.tokens.clone(), sequence.adapter.clone());
        self.slots[slot] = SlotContent { tokens, computed: positions, adapter, busy: true, used: self.step };
        self.running.push(sequence);
        Offered::Started
    }

    /// Frees idle slots, longest unused first, until a sequence of that many tokens fits in memory. One always fits.
    fn make_room(&mut self, tokens: usize) -> bool {
        loop {
            let reserved: usize = self.running.iter().map(Sequence::reserved).sum();
            let idle: usize = self.slots.iter().filter(|slot| !slot.busy).map(|slot| slot.computed).sum();
            if reserved + idle + tokens <= self.capacity || (self.running.is_empty() && idle == 0) {
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
        let begun = Instant::now();
        let hidden = self.model.decoder.hidden(&batch, Mode::Infer { cache: &mut self.cache, adapters: &adapters })?;
        self.pace.note(batch.segments.iter().map(|segment| segment.rows.len()), begun.elapsed());
        let mut complete = Vec::new();
        for (member, segment) in members.iter().zip(&batch.segments) {
            let sequence = &mut self.running[*member];
            sequence.computed += segment.rows.len();
            self.slots[sequence.slot].computed = sequence.computed;
            if sequence.computed == sequence.tokens.len() {
                complete.push((*member, segment.rows.end - 1));
            }
        }
        let (read, complete): (Vec<_>, Vec<_>) = complete.into_iter().partition(|(member, _)| self.running[*member].reads_only);
        // Whoever is done leaves after the others have their tokens: places in the batch must not move before.
        let finished = self.tell(&hidden, &read)?;
        self.sample(&hidden, &complete, finished)
    }

    /// Gives those who only read the hidden states of their last rows; says who is finished.
    fn tell(&mut self, hidden: &Tensor, read: &[(usize, usize)]) -> Result<Vec<bool>, EngineError> {
        let mut finished = vec![false; self.running.len()];
        let width = hidden.dim(1)?;
        with_slice(hidden, |hidden| {
            for (member, row) in read {
                self.running[*member].tell(&hidden[row * width..(row + 1) * width]);
                finished[*member] = true;
            }
        })?;
        Ok(finished)
    }

    /// Rows of the next step: one for each decoding sequence, and prompt chunks up to a budget, handed out in the order of admission.
    fn compose(&self) -> (Batch, Vec<usize>) {
        let mut chosen = Vec::new();
        let mut budget = self.pace.prompt_rows(self.running.iter().any(Sequence::is_decoding));
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

    /// Chooses a token for each complete sequence, and takes the finished ones out of the batch.
    fn sample(&mut self, hidden: &Tensor, complete: &[(usize, usize)], told: Vec<bool>) -> Result<(), EngineError> {
        if complete.is_empty() {
            self.retire(&told);
            return Ok(());
        }
        let rows: Vec<u32> = complete.iter().map(|(_, row)| *row as u32).collect();
        let rows = Tensor::from_slice(&rows, rows.len(), hidden.device())?;
        let logits = self.model.decoder.logits(&hidden.index_select(&rows, 0)?)?;
        let vocabulary = logits.dim(1)?;
        let mut rows = vec![None; self.running.len()];
        for (row, (member, _)) in complete.iter().enumerate() {
            rows[*member] = Some(row);
        }
        let tokenizer = &self.model.tokenizer;
        // Masks of grammars make some of unequal size.
        let turns: Vec<Mutex<(&mut Sequence, bool)>> = self.running.iter_mut().map(|sequence| Mutex::new((sequence, false))).collect();
        with_slice(&logits, |logits| {
            pool::each(turns.len(), |index| {
                let Some(row) = rows[index] else { return };
                let mut turn = turns[index].lock().unwrap_or_else(PoisonError::into_inner);
                turn.1 = !turn.0.advance(&logits[row * vocabulary..(row + 1) * vocabulary], tokenizer);
            });
        })?;
        let sampled = turns.into_iter().map(|turn| turn.into_inner().unwrap_or_else(PoisonError::into_inner).1);
        let finished: Vec<bool> = told.iter().zip(sampled).map(|(told, sampled)| *told || sampled).collect();
        self.retire(&finished);
        Ok(())
    }

    /// Says what there is to say, and takes sequences out of the batch; what they computed stays in their slots.
    fn retire(&mut self, finished: &[bool]) {
        self.running.iter_mut().for_each(Sequence::say);
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
        for mut sequence in self.running.drain(..) {
            sequence.fail(EngineError::Tensor(candle_core::Error::Msg(error.to_string())));
            sequence.say();
            self.slots[sequence.slot] = SlotContent::default();
            self.cache.free(sequence.slot);
        }
    }
}
