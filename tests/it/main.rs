//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

#[cfg(target_os = "linux")]
mod abuse;
mod audit;
mod batches;
mod budgets;
mod cache;
mod cascade;
mod cli;
mod clients;
mod config;
mod curate;
mod datasets;
mod datasets_check;
mod datasets_docs;
mod datasets_import;
mod datasets_quality;
#[cfg(target_os = "linux")]
mod dotprompt;
mod drain;
#[cfg(target_os = "linux")]
mod durability;
mod edges;
#[cfg(feature = "local")]
mod embeddings;
#[cfg(feature = "local")]
mod engine;
#[cfg(feature = "local")]
mod engine_files;
mod evals;
#[cfg(target_os = "linux")]
mod evals_money;
#[cfg(target_os = "linux")]
mod evals_pinned;
mod evals_reports;
mod evals_resume;
#[cfg(target_os = "linux")]
mod evals_runner;
#[cfg(feature = "local")]
mod families;
mod faults;
mod feedback;
mod fine_tuning;
#[cfg(all(feature = "local", target_os = "linux"))]
mod fine_tuning_local;
mod forwarding;
mod gateway;
mod guardrails;
mod headers;
#[cfg(feature = "local")]
mod heads;
#[cfg(feature = "local")]
mod interop;
mod keys;
mod limits;
#[cfg(feature = "local")]
mod local;
#[cfg(feature = "local")]
mod local_sampling;
#[cfg(feature = "local")]
mod local_scheduling;
#[cfg(feature = "local")]
mod local_structured;
#[cfg(feature = "local")]
mod local_tools;
mod log;
mod logs;
mod messages;
#[cfg(feature = "local")]
mod methods;
mod models;
mod observability;
mod openai_evals;
mod origins;
mod places;
mod prices;
mod prompt_calls;
#[cfg(target_os = "linux")]
mod prompt_examples;
mod prompt_lint;
#[cfg(target_os = "linux")]
mod prompt_optimize;
mod prompt_registry;
mod promptfoo;
mod prompts;
mod releases;
#[cfg(target_os = "linux")]
mod reload;
mod resilience;
#[cfg(target_os = "linux")]
mod rig;
mod routing;
#[cfg(target_os = "linux")]
mod scorers;
mod serving;
#[cfg(target_os = "linux")]
mod snapshots;
#[cfg(target_os = "linux")]
mod soak;
mod stored;
mod streams;
mod support;
mod telemetry;
mod templates;
mod tenancy;
#[cfg(feature = "local")]
mod tune_cli;
#[cfg(feature = "local")]
mod tune_docs;
#[cfg(feature = "local")]
mod tune_search;
#[cfg(feature = "local")]
mod tuning;
mod upstream;
#[cfg(target_os = "linux")]
mod upstream_faults;
#[cfg(feature = "local")]
mod whole;
mod wire;
