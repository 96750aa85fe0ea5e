//! Statistics: pure functions that evaluations, gates and monitoring share. Each says where its formula comes from.

pub mod distributions;
pub mod intervals;
pub mod paired;

pub use intervals::{Interval, Summary, percentile, summarise, t_interval, wilson};
pub use paired::{Paired, mcnemar_exact, paired};
