//! Schema migrations: numbered SQL files, each applied once, each in one transaction together with its number.

use super::db::{Bulk, Db, Statement, StoreError};

const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_spine.sql"),
    include_str!("migrations/0002_files_batches.sql"),
    include_str!("migrations/0003_gateway.sql"),
    include_str!("migrations/0004_prompts.sql"),
    include_str!("migrations/0005_evals.sql"),
    include_str!("migrations/0006_datasets.sql"),
    include_str!("migrations/0007_openai_evals.sql"),
    include_str!("migrations/0008_scoring.sql"),
    include_str!("migrations/0009_tuning.sql"),
    include_str!("migrations/0010_log.sql"),
    include_str!("migrations/0011_snapshots.sql"),
    include_str!("migrations/0012_answered_as.sql"),
];

/// Brings the database to the newest schema.
///
/// # Errors
/// [`StoreError::Newer`] when it was written by a newer program; otherwise what the database says.
pub fn run(db: &dyn Db) -> Result<(), StoreError> {
    db.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)", &[])?;
    let known = MIGRATIONS.len() as i64;
    let found = version(db)?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for number in found + 1..=known {
        let applied = db.batch(&statements(number));
        // Another process may have applied it between our look and our transaction.
        if let Err(error) = applied
            && version(db)? < number
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Writes the schema's number over itself: whether the database takes a transaction now. It changes nothing, so the generation stays.
///
/// # Errors
/// What the database says.
pub fn touch(db: &dyn Db) -> Result<(), StoreError> {
    let own = Statement::new("UPDATE schema_version SET version = version WHERE version = ?", [version(db)?.into()]);
    db.batch_apart(&Bulk::empty(), &[own.expecting(1)])
}

fn version(db: &dyn Db) -> Result<i64, StoreError> {
    Ok(db.query("SELECT MAX(version) FROM schema_version", &[])?.first().map_or(0, |row| row.int(0)))
}

fn statements(number: i64) -> Vec<Statement> {
    let mut statements = vec![Statement::new("INSERT INTO schema_version (version) VALUES (?)", [number.into()])];
    let source = MIGRATIONS[number as usize - 1];
    let lines: Vec<_> = source.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let sql = lines.join("\n");
    statements.extend(sql.split(';').map(str::trim).filter(|s| !s.is_empty()).map(|s| Statement::new(s.to_string(), [])));
    statements
}
