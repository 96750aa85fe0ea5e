//! Judges: models that say how good an answer is. [`ask`] gets one verdict in a form that can be read, [`agreement`] compares verdicts
//! with people's. The scorer over them is `scorers/llm_judge.rs`.
//!
//! What is judged is handed over as JSON: no text of an answer can end its field and speak to the judge in its own name. It may still
//! try to persuade, which the instruction says, and which agreement with people measures.

pub mod agreement;
pub mod ask;

pub use agreement::Agreement;
pub use ask::{Judge, Question};
