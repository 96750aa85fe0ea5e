//! `refit key` and `refit audit`, and what stands on disk.

use crate::support::Refit;
use serde_json::json;

#[test]
fn a_key_is_shown_once_and_stored_only_as_a_hash() {
    let refit = Refit::new();
    let made = refit.run(&["key", "create", "my app", "--project", "shop", "--role", "viewer", "--json"]).expect(0).json();
    let key = made["key"].as_str().expect("a key");
    assert!(
        key.len() == 46 && key.starts_with("rk_") && key[3..].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
        "{made}"
    );
    assert_eq!((&made["name"], &made["project"], &made["role"]), (&json!("my app"), &json!("shop"), &json!("viewer")));

    let listed = refit.run(&["key", "list", "--json"]).expect(0);
    assert!(!listed.stdout.contains(key) && !listed.stdout.contains("hash"), "{listed:?}");
    assert_eq!(listed.json()[0]["id"], made["id"]);
    for entry in std::fs::read_dir(refit.data_dir()).expect("the data directory").flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path()).expect("a file");
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{} holds the key", entry.path().display());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let pepper = std::fs::metadata(refit.data_dir().join("pepper")).expect("the pepper");
        assert_eq!(pepper.permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn wrong_names_and_roles_are_refused_and_nothing_is_written() {
    let refit = Refit::new();
    for (args, named) in [
        (vec!["key", "create", "x", "--role", "king"], "role"),
        (vec!["key", "create", "x", "--project", "No Slug"], "project"),
        (vec!["key", "create", ""], "name"),
        (vec!["key", "revoke", "nobody"], "nobody"),
    ] {
        let done = refit.run(&args).expect(2);
        assert!(done.stdout.is_empty() && done.stderr.starts_with("error: ") && done.stderr.contains(named), "{done:?}");
    }
    assert_eq!(refit.run(&["key", "list", "--json"]).expect(0).json(), json!([]));
    assert_eq!(refit.run(&["audit", "verify", "--json"]).expect(0).json(), json!({"rows": 0}));
}

#[test]
fn making_and_revoking_leave_audit_rows_and_tampering_shows() {
    let refit = Refit::new();
    refit.key();
    let id = refit.run(&["key", "list", "--json"]).expect(0).json()[0]["id"].clone();
    refit.run(&["key", "revoke", id.as_str().expect("an id")]).expect(0);
    refit.run(&["key", "revoke", id.as_str().expect("an id")]).expect(2);
    let rows = refit.run(&["audit", "list", "--json"]).expect(0).json();
    let actions: Vec<_> = rows.as_array().expect("rows").iter().map(|row| row["action"].clone()).collect();
    assert_eq!((actions, &rows[1]["subject"]), (vec![json!("key.create"), json!("key.revoke")], &id));
    refit.run(&["audit", "verify"]).expect(0);

    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    database.execute("UPDATE audit SET actor = 'somebody else' WHERE sequence = 2", []).expect("tampers");
    let done = refit.run(&["audit", "verify"]).expect(2);
    assert!(done.stderr.contains("row 2"), "{done:?}");
}
