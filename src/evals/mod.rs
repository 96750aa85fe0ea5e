//! Evaluation: suites, scorers, runs, metrics and the report.
