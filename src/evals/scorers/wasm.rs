//! `wasm`: a WebAssembly module of yours scores the answer (see [`external`](super::external) for what it is told and says). Options:
//! `file`, below the suite's folder; `fuel`, about the instructions that it may take for a case (200 million); `memory_mib` (64); `metrics`: names of more numbers.
//!
//! The module imports nothing: it sees the case and nothing else of this machine. It exports its `memory`, `alloc(length) -> pointer`
//! and `score(pointer, length) -> i64`, the place of its JSON in the upper half and the length in the lower. Each case gets a module that
//! has seen no other. Like programs it only runs where that is allowed: it is code all the same.

use super::command::REFUSED;
use super::external::{self, MAX_OUTPUT};
use super::{Case, Options, Scored, Scorer, Services};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use wasmi::{Config, Engine, Linker, Module, Store, StoreLimits, StoreLimitsBuilder};

struct Wasm {
    name: String,
    file: String,
    code: Arc<Code>,
    more: Vec<String>,
}

/// A module that is ready to be run.
struct Code {
    engine: Engine,
    module: Module,
    fuel: u64,
    memory: usize,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let file = options.text("file")?.ok_or("file is missing")?;
    let bytes = options.for_suites_only()?.read(&file)?;
    let fuel = options.count("fuel", 1..=u64::MAX)?.unwrap_or(200_000_000);
    let memory = options.count("memory_mib", 1..=4_096)?.unwrap_or(64);
    let more = external::more(&mut options)?;
    options.finish()?;
    let mut config = Config::default();
    config.consume_fuel(true);
    let engine = Engine::new(&config);
    let module = Module::new(&engine, bytes).map_err(|error| format!("{file}: {error}"))?;
    if let Some(import) = module.imports().next() {
        return Err(format!("{file} imports {}.{}; a scorer imports nothing", import.module(), import.name()));
    }
    let code = Arc::new(Code { engine, module, fuel, memory: memory as usize * 1024 * 1024 });
    Ok(Box::new(Wasm { name, file, code, more }))
}

impl Scorer for Wasm {
    fn metrics(&self) -> Vec<String> {
        external::names(&self.name, &self.more)
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            if !services.allows_commands() {
                return Err(REFUSED.into());
            }
            let (code, told) = (self.code.clone(), external::told(case));
            let said = tokio::task::spawn_blocking(move || code.run(told.as_bytes())).await;
            let said = said.unwrap_or_else(|_| Err("it ended early".into())).map_err(|problem| format!("{}: {problem}", self.file))?;
            external::said(&said, &self.more)
        })
    }

    fn runs_commands(&self) -> bool {
        true
    }
}

impl Code {
    /// What the module says about a case. Blocking.
    fn run(&self, case: &[u8]) -> Result<String, String> {
        let shown = |error: wasmi::Error| error.to_string();
        let limits = StoreLimitsBuilder::new().memory_size(self.memory).table_elements(100_000).memories(1).tables(16).instances(1).build();
        let mut store = Store::new(&self.engine, limits);
        store.limiter(|limits: &mut StoreLimits| limits);
        store.set_fuel(self.fuel).map_err(shown)?;
        let instance = Linker::new(&self.engine).instantiate_and_start(&mut store, &self.module).map_err(shown)?;
        let memory = instance.get_memory(&store, "memory").ok_or("it exports no memory")?;
        let alloc = instance.get_typed_func::<u32, u32>(&store, "alloc").map_err(|_| "it exports no alloc(i32) -> i32")?;
        let score = instance.get_typed_func::<(u32, u32), u64>(&store, "score").map_err(|_| "it exports no score(i32, i32) -> i64")?;
        let length = u32::try_from(case.len()).map_err(|_| "the case is too large")?;
        let place = alloc.call(&mut store, length).map_err(shown)?;
        memory.write(&mut store, place as usize, case).map_err(|error| format!("the case does not fit into its memory: {error}"))?;
        let said = score.call(&mut store, (place, length)).map_err(shown)?;
        let (place, length) = ((said >> 32) as usize, (said & 0xffff_ffff) as usize);
        if length > MAX_OUTPUT {
            return Err(format!("it says more than {MAX_OUTPUT} bytes"));
        }
        let mut bytes = vec![0; length];
        memory.read(&store, place, &mut bytes).map_err(|error| format!("what it says is not in its memory: {error}"))?;
        String::from_utf8(bytes).map_err(|_| "it does not answer with text".into())
    }
}
