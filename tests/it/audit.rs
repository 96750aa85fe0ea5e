//! The audit chain against somebody who edits the database behind Refit's back.

use refit::access::{AccessError, audit};
use refit::store::{Statement, Store, StoreError};
use serde_json::{Value, json};

fn store_with_rows(n: usize) -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(directory.path()).expect("a store");
    for i in 0..n {
        audit::append(&store, "test", "thing.make", &format!("thing-{i}"), &json!({"i": i})).expect("the database takes it");
    }
    (directory, store)
}

fn first_bad_row(sql: &str) -> Option<i64> {
    let (_directory, store) = store_with_rows(5);
    assert_eq!(audit::verify(&store).expect("an intact chain"), 5);
    store.db.execute(sql, &[]).expect("the database takes it");
    match audit::verify(&store) {
        Err(AccessError::Broken { sequence, .. }) => Some(sequence),
        _ => None,
    }
}

#[test]
fn names_the_first_row_that_was_edited_deleted_moved_or_cut_off() {
    assert_eq!(first_bad_row("UPDATE audit SET detail = '{}' WHERE sequence = 3"), Some(3));
    assert_eq!(first_bad_row("UPDATE audit SET at = at + 1 WHERE sequence = 5"), Some(5));
    assert_eq!(first_bad_row("DELETE FROM audit WHERE sequence = 2"), Some(2));
    assert_eq!(first_bad_row("DELETE FROM audit WHERE sequence = 5"), Some(5));
    assert_eq!(first_bad_row("DELETE FROM audit"), Some(1));
}

#[test]
fn swapped_rows_are_found() {
    let (_directory, store) = store_with_rows(5);
    for (from, to) in [(2, 99), (3, 2), (99, 3)] {
        store.db.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", &[to.into(), from.into()]).expect("the database takes it");
    }
    assert!(matches!(audit::verify(&store), Err(AccessError::Broken { sequence: 2, .. })));
}

#[test]
fn a_change_that_fails_leaves_no_row() {
    let (_directory, store) = store_with_rows(1);
    let change = Statement::new("DELETE FROM api_keys", []).expecting(1);
    let entry = audit::Entry { actor: "test", action: "a.b", subject: "s", detail: &Value::Null };
    assert!(matches!(audit::append_with(&store, entry, &[change]), Err(StoreError::Conflict(_))));
    assert_eq!(audit::verify(&store).expect("an intact chain"), 1);
}
