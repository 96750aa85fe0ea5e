//! Rows of `files`: what clients uploaded and what batches wrote. The bytes lie in `uploads/` by digest and are removed with the last
//! row that names them.

use super::Store;
use super::batches::UNFINISHED;
use super::db::{Db, Row, Statement, StoreError, Value};
use super::fine_tunes::READS;
use crate::types::Digest;
use crate::types::time::now_ms;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// One file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileRow {
    /// `file-…`.
    pub id: String,
    /// Project (tenant) it belongs to; no other sees it.
    pub project: String,
    /// What its owner calls it; never a path here.
    pub filename: String,
    /// `batch`, `fine-tune`, …
    pub purpose: String,
    /// Of its bytes.
    pub digest: Digest,
    /// How many they are.
    pub size_bytes: u64,
    /// Key that made it.
    pub created_by: String,
    /// When it was made, milliseconds.
    pub created_at: i64,
    /// When it ends, milliseconds.
    pub expires_at: Option<i64>,
}

/// Which part of a project's files is listed.
#[derive(Debug, Clone, Default)]
pub struct Page<'a> {
    /// Only files of this purpose.
    pub purpose: Option<&'a str>,
    /// Only what comes after this file.
    pub after: Option<&'a str>,
    /// At most so many.
    pub limit: usize,
    /// Oldest first; newest first otherwise.
    pub ascending: bool,
}

const COLUMNS: &str = "id, project, filename, purpose, digest, size_bytes, created_by, created_at, expires_at";

/// A fresh id, `file-` and 32 hex digits: OpenAI's have a hyphen there, and some clients look for it.
pub fn new_file_id() -> String {
    format!("file-{}", Uuid::now_v7().simple())
}

/// Keeps bytes in place while a row comes or goes: without it, a deletion could take the bytes of a file that is just being made.
fn guard() -> MutexGuard<'static, ()> {
    static BYTES: Mutex<()> = Mutex::new(());
    BYTES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes files out of finished temporary ones (see `Blobs::incoming`), together with what else `more` says, or not at all. The
/// digests and sizes in the rows are filled in; the temporary files are gone afterwards in any case.
///
/// # Errors
/// What the file system or the database says; [`StoreError::Conflict`] from `more`.
pub fn create(store: &Store, mut files: Vec<(FileRow, PathBuf)>, more: Vec<Statement>) -> Result<Vec<FileRow>, StoreError> {
    let _guard = guard();
    let stored = adopt(store, &mut files).and_then(|()| {
        let mut statements: Vec<_> = files.iter().map(|(row, _)| insertion(row)).collect();
        statements.extend(more);
        store.db.batch(&statements)
    });
    if stored.is_err() {
        for (row, path) in &files {
            // The error that is told is the first one; what cannot be removed now goes with the next `tidy`.
            let _ = std::fs::remove_file(path);
            let _ = remove_unnamed(store, &row.digest);
        }
    }
    stored.map(|()| files.into_iter().map(|(row, _)| row).collect())
}

fn adopt(store: &Store, files: &mut [(FileRow, PathBuf)]) -> Result<(), StoreError> {
    for (row, path) in files {
        row.size_bytes = std::fs::metadata(&*path).map_err(|source| StoreError::Io { path: path.clone(), source })?.len();
        row.digest = store.uploads.adopt(path)?;
    }
    Ok(())
}

/// Age from which a temporary file of an import is nobody's any more.
const LEFT_OVER: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// Removes what a killed process left: temporary files, and bytes that no row names. Nobody else may be making files meanwhile.
///
/// # Errors
/// What the database or the file system says.
pub fn tidy(store: &Store) -> Result<(), StoreError> {
    let _guard = guard();
    for path in entries(&store.uploads.incoming())? {
        remove_any(&path)?;
    }
    // Datasets are imported by other processes, too: only what none of them can be at work on goes.
    for path in entries(&store.blobs.incoming())?.into_iter().filter(|path| is_left_over(path)) {
        remove_any(&path)?;
    }
    for digest in store.uploads.list()? {
        remove_unnamed(store, &digest)?;
    }
    Ok(())
}

/// Whether a file is of an import (`import_…`, `ids_…`) that wrote to it last more than a day ago.
fn is_left_over(path: &Path) -> bool {
    let is_ours =
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("import_") || name.starts_with("ids_"));
    let age = || path.metadata().and_then(|data| data.modified()).ok()?.elapsed().ok();
    is_ours && age().is_some_and(|age| age > LEFT_OVER)
}

/// What lies in a directory; nothing where there is none.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Io { path: directory.to_path_buf(), source };
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed(source)),
    }
}

/// Removes a file, or a directory with what is in it.
pub(crate) fn remove_any(path: &Path) -> Result<(), StoreError> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io { path: path.to_path_buf(), source }),
        _ => Ok(()),
    }
}

fn insertion(row: &FileRow) -> Statement {
    let sql = format!("INSERT INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
    let params = [
        Value::from(&row.id),
        (&row.project).into(),
        (&row.filename).into(),
        (&row.purpose).into(),
        row.digest.into(),
        row.size_bytes.into(),
        (&row.created_by).into(),
        row.created_at.into(),
        row.expires_at.into(),
    ];
    Statement::new(sql, params)
}

/// A project's file that has not expired.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none of that id, or it is another project's.
pub fn get(db: &dyn Db, project: &str, id: &str) -> Result<FileRow, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM files WHERE id = ? AND project = ? AND (expires_at IS NULL OR expires_at > ?)");
    let found = db.query(&sql, &[id.into(), project.into(), now_ms().into()])?;
    found.first().map(read).transpose()?.ok_or_else(|| unknown(id))
}

/// A project's file, whether or not it has expired: for whoever began to read it before.
///
/// # Errors
/// [`StoreError::Unknown`] when it is gone.
pub fn get_any(db: &dyn Db, project: &str, id: &str) -> Result<FileRow, StoreError> {
    let found = db.query(&format!("SELECT {COLUMNS} FROM files WHERE id = ? AND project = ?"), &[id.into(), project.into()])?;
    found.first().map(read).transpose()?.ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> StoreError {
    StoreError::Unknown { what: "file", name: id.to_string(), nearest: String::new() }
}

/// One page of a project's files, and whether more follow. Ids sort by the time they were made, so that a page begins where the last
/// one ended even when its last file is gone.
///
/// # Errors
/// When the database fails.
pub fn list(db: &dyn Db, project: &str, page: &Page<'_>) -> Result<(Vec<FileRow>, bool), StoreError> {
    let mut params: Vec<Value> = vec![project.into(), now_ms().into()];
    let mut sql = format!("SELECT {COLUMNS} FROM files WHERE project = ? AND (expires_at IS NULL OR expires_at > ?)");
    if let Some(purpose) = page.purpose {
        sql.push_str(" AND purpose = ?");
        params.push(purpose.into());
    }
    let (beyond, order) = if page.ascending { (">", "ASC") } else { ("<", "DESC") };
    if let Some(after) = page.after {
        sql.push_str(&format!(" AND id {beyond} ?"));
        params.push(after.into());
    }
    sql.push_str(&format!(" ORDER BY id {order} LIMIT ?"));
    params.push((page.limit + 1).into());
    let mut rows = db.query(&sql, &params)?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let more = rows.len() > page.limit;
    rows.truncate(page.limit);
    Ok((rows, more))
}

/// Takes a project's file away, its bytes too where no other file has them.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none; [`StoreError::Conflict`] while a batch or a fine-tuning job reads it.
pub fn delete(store: &Store, project: &str, id: &str) -> Result<(), StoreError> {
    let row = get(store.db.as_ref(), project, id)?;
    remove(store, &row)
}

/// Takes the files away that have expired, but for those that a batch still reads.
///
/// # Errors
/// What the database or the file system says.
pub fn sweep(store: &Store) -> Result<usize, StoreError> {
    let db = store.db.as_ref();
    let sql = format!("SELECT {COLUMNS} FROM files WHERE expires_at <= ?");
    let expired = db.query(&sql, &[now_ms().into()])?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut removed = 0;
    for row in &expired {
        match remove(store, row) {
            // A batch still reads it, or somebody was faster.
            Err(StoreError::Conflict(_) | StoreError::Unknown { .. }) => {}
            other => {
                other?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

fn remove(store: &Store, row: &FileRow) -> Result<(), StoreError> {
    let _guard = guard();
    let db = store.db.as_ref();
    // In one statement, and new batches name only files that are there: one of the two is refused.
    let sql = format!(
        "DELETE FROM files WHERE id = ? AND NOT EXISTS (SELECT 1 FROM batches WHERE input_file = ? AND status IN {UNFINISHED})
        AND NOT EXISTS (SELECT 1 FROM fine_tunes WHERE {READS})"
    );
    let id = || Value::from(&row.id);
    if db.execute(&sql, &[id(), id(), id(), id()])? == 0 {
        let reader = match super::batches::reading(db, &row.id)? {
            Some(batch) => Some(format!("batch {batch}")),
            None => super::fine_tunes::reading(db, &row.id)?.map(|job| format!("the fine-tuning job {job}")),
        };
        return Err(match reader {
            Some(reader) => StoreError::Conflict(format!("{reader} still reads the file {}", row.id)),
            None => unknown(&row.id),
        });
    }
    remove_unnamed(store, &row.digest)
}

fn remove_unnamed(store: &Store, digest: &Digest) -> Result<(), StoreError> {
    let named = store.db.query("SELECT id FROM files WHERE digest = ? LIMIT 1", &[(*digest).into()])?;
    if named.is_empty() { store.uploads.remove(digest) } else { Ok(()) }
}

fn read(row: &Row) -> Result<FileRow, StoreError> {
    Ok(FileRow {
        id: row.text(0),
        project: row.text(1),
        filename: row.text(2),
        purpose: row.text(3),
        digest: row.digest(4)?,
        size_bytes: u64::try_from(row.int(5)).unwrap_or(0),
        created_by: row.text(6),
        created_at: row.int(7),
        expires_at: row.int_or_null(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, project: &str, expires_at: Option<i64>) -> FileRow {
        let (filename, purpose) = ("a.jsonl".into(), "batch".into());
        let digest = Digest::of(b"");
        FileRow {
            id: id.into(),
            project: project.into(),
            filename,
            purpose,
            digest,
            size_bytes: 0,
            created_by: "k".into(),
            created_at: 1,
            expires_at,
        }
    }

    #[test]
    fn bytes_go_with_the_last_file_and_projects_are_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let db = store.db.as_ref();
        let make = |row: FileRow| {
            let path = store.uploads.incoming().join(&row.id);
            std::fs::write(&path, b"same bytes").expect("written");
            create(&store, vec![(row, path)], Vec::new()).expect("made").remove(0)
        };
        let (one, two) = (make(row("file-1", "a", None)), make(row("file-2", "b", None)));
        make(row("file-3", "a", Some(2)));
        assert_eq!((one.digest, one.size_bytes), (two.digest, 10));
        assert!(matches!(get(db, "b", "file-1"), Err(StoreError::Unknown { .. })));
        assert!(matches!(get(db, "a", "file-3"), Err(StoreError::Unknown { .. })), "expired");
        assert_eq!(sweep(&store).expect("swept"), 1);
        delete(&store, "a", "file-1").expect("deleted");
        assert!(store.uploads.contains(&one.digest), "file-2 has the same bytes");
        delete(&store, "b", "file-2").expect("deleted");
        assert!(!store.uploads.contains(&one.digest));
        assert!(delete(&store, "b", "file-2").is_err());
    }

    #[test]
    fn pages_follow_one_another_in_both_orders() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        for i in 0..5 {
            let path = store.uploads.incoming().join(i.to_string());
            std::fs::write(&path, i.to_string()).expect("written");
            // Two of them share their time: the id decides then.
            let row = FileRow { created_at: 10 + i / 2, ..row(&format!("file-{i}"), "a", None) };
            create(&store, vec![(row, path)], Vec::new()).expect("made");
        }
        for ascending in [true, false] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = Page { after: after.as_deref(), limit: 2, ascending, ..Page::default() };
                let (rows, more) = list(store.db.as_ref(), "a", &page).expect("a page");
                seen.extend(rows.iter().map(|row| row.id.clone()));
                after = rows.last().map(|row| row.id.clone());
                if !more {
                    break;
                }
            }
            let mut wanted: Vec<_> = (0..5).map(|i| format!("file-{i}")).collect();
            if !ascending {
                wanted.reverse();
            }
            assert_eq!(seen, wanted);
        }
    }
}
