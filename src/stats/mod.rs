//! Statistics: pure functions, shared by evals, releases and monitor.
