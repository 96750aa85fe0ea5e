//! What is promised to stand, stands: after kills, on a full disk, when calls to the file system fail, and when stored bytes are damaged.

use crate::rig::{
    ALL, CHAT, Disk, EIO, EROFS, Ended, Faulty, Line, chat, full, gauge, provider, rows_in, says, signal, upstream, wait_for,
};
use crate::support::{Refit, Reply, Server, send};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn ask(server: &Server, key: &str, text: &str) -> Reply {
    server.post(CHAT, Some(key), &chat("mock/echo", text, json!({})))
}

fn id(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("x-request-id").expect("an id").to_string()
}

fn ids(refit: &Refit) -> HashSet<String> {
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let mut found = database.prepare("SELECT id FROM requests").expect("a statement");
    let found = found.query_map([], |row| row.get(0)).expect("rows");
    found.collect::<Result<_, _>>().expect("texts")
}

fn viewer(refit: &Refit) -> String {
    refit.run(&["key", "create", "dashboard", "--role", "viewer", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string()
}

fn upload(server: &Server, key: &str, content: &str) -> Reply {
    let body = format!(
        "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{content}\r\n--b--\r\n"
    );
    let headers = [("content-type", "multipart/form-data; boundary=b")];
    send("POST", &format!("{}/v1/files", server.url()), Some(key), &headers, Some(body.into_bytes()))
}

/// Callers that go on until the server is gone, writing down the ids of what they have read to the last byte.
fn load(server: &Server, key: &str, acknowledged: &Mutex<Vec<String>>, ended: &AtomicBool, request: &Value) {
    load_at(server, key, acknowledged, ended, (request, Duration::ZERO));
}

/// The same with a pause after each reply.
fn load_at(server: &Server, key: &str, acknowledged: &Mutex<Vec<String>>, ended: &AtomicBool, (request, pause): (&Value, Duration)) {
    let Ok(mut line) = Line::try_to(server) else { return };
    let request = request.to_string();
    while !ended.load(Ordering::Relaxed) {
        if line.send("POST", CHAT, Some(key), &request).is_err() {
            return;
        }
        let Some(reply) = line.reply() else { return };
        assert_eq!(reply.status, 200, "{reply:?}");
        acknowledged.lock().expect("list").push(id(&reply));
        std::thread::sleep(pause);
    }
}

/// reliability.md, Durability 1.
#[test]
fn a_kill_under_load_loses_no_acknowledged_row_in_many_cycles() {
    let cycles = if full() { 200 } else { 20 };
    let (up, refit) = (upstream(|stream, _| says(stream, "words")), Refit::new());
    refit.write("refit.toml", provider(up.port));
    let streamed = chat("mock/echo", "a few words that are echoed", json!({"stream": true}));
    // Those that end at once are written down together.
    let whole = chat("up/m", "a few words", json!({}));
    let (key, acknowledged) = (refit.key(), Mutex::new(Vec::new()));
    for cycle in 0..cycles {
        let mut server = refit.serve(&[]);
        let (ended, before) = (AtomicBool::new(false), acknowledged.lock().expect("list").len());
        let address = server.url();
        std::thread::scope(|scope| {
            for caller in 0..8 {
                let (server, key, acknowledged, ended) = (&server, &key, &acknowledged, &ended);
                let request = if caller % 4 == 0 { &streamed } else { &whole };
                scope.spawn(move || load(server, key, acknowledged, ended, request));
            }
            // The kill comes at another moment of the log's rhythm each time.
            wait_for("some calls", || acknowledged.lock().expect("list").len() > before + 20);
            std::thread::sleep(Duration::from_millis(cycle * 37 % 150));
            let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).expect("a pid")).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("there");
            ended.store(true, Ordering::Relaxed);
        });
        assert_eq!(server.wait(), None, "{address} was killed");
    }
    // The next start moves what the killed ones left.
    drop(refit.serve(&[]));
    let (acknowledged, standing) = (acknowledged.into_inner().expect("list"), ids(&refit));
    let lost: Vec<_> = acknowledged.iter().filter(|id| !standing.contains(*id)).collect();
    assert!(lost.is_empty(), "lost {} of {}", lost.len(), acknowledged.len());
    assert!(acknowledged.len() as u64 >= 20 * cycles, "{}", acknowledged.len());
    assert_eq!(rows_in(&refit.data_dir()).1, "ok");
}

/// reliability.md, Durability 6.
#[test]
fn on_a_full_disk_answers_go_on_and_their_rows_are_written_once_there_is_room() {
    let refit = Refit::new();
    let disk = Disk::new(&refit, 8);
    let (key, viewer, mut server) = (refit.key(), viewer(&refit), disk.serve(&refit));
    let before = id(&ask(&server, &key, "before"));
    disk.fill();
    let meanwhile: Vec<_> = (0..20).map(|_| id(&ask(&server, &key, &"meanwhile ".repeat(1_000)))).collect();
    let streamed = server.post(CHAT, Some(&key), &chat("mock/echo", "streamed", json!({"stream": true})));
    assert!(streamed.body.ends_with("data: [DONE]\n\n"), "{streamed:?}");
    wait_for("the end of readiness", || server.get("/ready", None).status == 503);
    let told = server.get("/status", Some(&viewer)).json();
    assert!(told["status"] == "failing" && told["log"]["kept"].as_u64() >= Some(1) && told["log"]["dropped"] == 0, "{told}");
    assert!(told["log"]["disk"].is_string() && told["wrong"].to_string().contains("kept in memory"), "{told}");
    assert!(gauge(&server, "refit_log_rows_kept") >= 1.0 && server.get("/health", None).status == 200);
    disk.free();
    wait_for("readiness", || server.get("/ready", None).status == 200);
    let after = id(&ask(&server, &key, "after"));
    wait_for("every row", || server.get("/status", Some(&viewer)).json()["log"]["pending"] == 0);
    assert_eq!(gauge(&server, "refit_log_rows_kept"), 0.0);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(server.pid()).expect("a pid")).expect("a pid"),
        rustix::process::Signal::TERM,
    )
    .expect("there");
    assert_eq!(server.wait(), Some(0));
    let standing = ids(&refit);
    assert!(meanwhile.iter().chain([&before, &after, &id(&streamed)]).all(|id| standing.contains(id)), "{}", standing.len());
    assert_eq!(rows_in(&refit.data_dir()), (23, "ok".to_string()));
}

/// Once the server is ready again nothing stands in memory only, whoever asked while what was kept there was written.
#[test]
fn callers_who_go_on_through_a_recovery_lose_no_row_to_a_kill_after_it() {
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (key, request) = (refit.key(), chat("mock/echo", "words", json!({})));
    let (acknowledged, count) = (Mutex::new(Vec::new()), |list: &Mutex<Vec<String>>| list.lock().expect("list").len());
    for _ in 0..3 {
        let (mut server, ended, before) = (faulty.serve(&refit), AtomicBool::new(false), count(&acknowledged));
        faulty.fail("open,write", EIO, ALL, "requests");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (server, key, acknowledged, ended, request) = (&server, &key, &acknowledged, &ended, &request);
                // A trouble may last for seven seconds before it is looked at again, and what is kept meanwhile has a bound.
                let pace = Duration::from_millis(10);
                scope.spawn(move || load_at(server, key, acknowledged, ended, (request, pace)));
            }
            let _ended = Ended(&ended);
            wait_for("calls", || count(&acknowledged) > before + 200);
            assert_eq!(server.get("/ready", None).status, 503);
            faulty.heal();
            wait_for("readiness", || server.get("/ready", None).status == 200);
            signal(&server, Signal::KILL);
        });
        assert_eq!(server.wait(), None);
    }
    drop(refit.serve(&[]));
    let (acknowledged, standing) = (acknowledged.into_inner().expect("list"), ids(&refit));
    let lost = acknowledged.iter().filter(|id| !standing.contains(*id)).count();
    assert_eq!(lost, 0, "of {}", acknowledged.len());
}

/// A row that fits neither on the disk nor into the memory for such rows is lost, and nothing else is.
#[test]
fn a_row_that_fits_nowhere_does_not_end_the_log() {
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (key, viewer, server) = (refit.key(), viewer(&refit), faulty.serve(&refit));
    faulty.fail("open,write", EIO, ALL, "requests");
    id(&ask(&server, &key, &"x".repeat(9 << 20)));
    assert_eq!(server.get("/status", Some(&viewer)).json()["log"]["dropped"], 1);
    faulty.heal();
    let after = id(&ask(&server, &key, "after"));
    wait_for("the row", || ids(&refit).contains(&after));
    assert_eq!(server.get("/ready", None).status, 200);
}

/// A long row must not take the room of the short ones behind it, with half of itself either.
#[test]
fn a_long_row_on_a_nearly_full_disk_does_not_hold_up_the_short_ones() {
    let refit = Refit::new();
    let disk = Disk::new(&refit, 24);
    let (key, viewer, server) = (refit.key(), viewer(&refit), disk.serve(&refit));
    disk.fill();
    let long = id(&ask(&server, &key, &"x".repeat(3 << 20)));
    let short = id(&ask(&server, &key, "short"));
    disk.free_some(2 << 20);
    wait_for("the short row", || refit.run(&["logs", "show", &short, "--json"]).code == 0);
    disk.free();
    wait_for("all rows", || server.get("/status", Some(&viewer)).json()["log"]["kept"] == 0);
    wait_for("the long row", || ids(&refit).contains(&long));
}

/// What is kept in memory has a bound; what is beyond it is counted.
#[test]
fn rows_that_fit_nowhere_are_counted_and_answers_still_go_on() {
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (key, viewer, server) = (refit.key(), viewer(&refit), faulty.serve(&refit));
    faulty.fail("open,write", EIO, ALL, "requests");
    let large = "x".repeat(2 << 20);
    for _ in 0..12 {
        id(&ask(&server, &key, &large));
    }
    let told = server.get("/status", Some(&viewer)).json();
    let (kept, dropped) = (told["log"]["kept"].as_u64().expect("a count"), told["log"]["dropped"].as_u64().expect("a count"));
    assert!(dropped >= 4 && kept >= 2 && kept + dropped == 12, "{told}");
    assert_eq!(gauge(&server, "refit_log_rows_dropped_total"), dropped as f64);
    assert!(server.errors().matches("log rows are lost").count() <= 4, "not a line each: {}", server.errors());
    faulty.heal();
    wait_for("room", || server.get("/status", Some(&viewer)).json()["log"]["kept"] == 0);
    drop(server);
    drop(refit.serve(&[]));
    assert_eq!(rows_in(&refit.data_dir()).0, i64::try_from(kept).expect("a count"));
}

#[test]
fn an_upload_that_does_not_fit_is_an_error_that_leaves_nothing_and_works_again_later() {
    let refit = Refit::new();
    let disk = Disk::new(&refit, 8);
    let (key, server) = (refit.key(), disk.serve(&refit));
    disk.fill();
    let refused = upload(&server, &key, &"{\"a\": 1}\n".repeat(100_000));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (500, &json!("storage_error")), "{refused:?}");
    assert!(!refused.body.contains(refit.path().to_str().expect("UTF-8")), "no path of the machine: {refused:?}");
    assert_eq!(server.get("/v1/files", Some(&key)).json()["data"], json!([]));
    assert_eq!(ask(&server, &key, "hi").status, 200);
    disk.free();
    let made = upload(&server, &key, "{\"a\": 1}\n");
    assert_eq!(made.status, 200, "{made:?}");
    let incoming = std::fs::read_dir(refit.data_dir().join("uploads/incoming")).expect("a directory").count();
    assert_eq!(incoming, 0, "nothing of the refused one is left");
}

/// reliability.md, Durability 7: what could not be synced is not said to stand.
#[test]
fn an_upload_whose_sync_fails_is_not_acknowledged_whichever_sync_it_is() {
    let last = if full() { 50 } else { 6 };
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (key, server) = (refit.key(), faulty.serve(&refit));
    let mut refused = 0;
    for nth in 1..=last {
        faulty.fail("sync", EIO, nth..=nth, "uploads");
        let content = format!("{{\"a\": {nth}}}\n");
        let reply = upload(&server, &key, &content);
        faulty.heal();
        let listed = server.get("/v1/files", Some(&key)).json()["data"].as_array().expect("files").clone();
        let named = listed.iter().find(|file| file["id"] == reply.json()["id"]);
        match reply.status {
            200 => {
                let path = format!("/v1/files/{}/content", named.expect("an acknowledged file is listed")["id"].as_str().expect("an id"));
                assert_eq!(server.get(&path, Some(&key)).body, content);
            }
            500 => {
                assert_eq!(reply.json()["error"]["code"], "storage_error", "{reply:?}");
                assert!(named.is_none());
                refused += 1;
            }
            other => panic!("{other}: {reply:?}"),
        }
        assert_eq!(listed.len() as u32, nth - refused, "only what was acknowledged");
    }
    assert!(refused >= 2, "the file's own sync and its directory's are seen: {refused}");
}

#[test]
fn a_failing_disk_shows_on_ready_and_status_and_so_does_its_recovery() {
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (viewer, server) = (viewer(&refit), faulty.serve(&refit));
    for (calls, part, wrong) in [("sync", "probe", "files cannot be written"), ("write", "refit.db", "the database cannot be written")] {
        assert_eq!(server.get("/ready", None).status, 200, "{part}");
        faulty.fail(calls, EIO, ALL, part);
        wait_for("the end of readiness", || server.get("/ready", None).status == 503);
        let told = server.get("/status", Some(&viewer)).json();
        assert!(told["status"] == "failing" && told["wrong"].to_string().contains(wrong), "{told}");
        let refused = server.get("/ready", None);
        assert!(
            refused.json()["error"]["code"] == "unavailable" && !refused.body.contains("I/O"),
            "strangers learn no reasons: {refused:?}"
        );
        faulty.heal();
        wait_for("readiness", || server.get("/ready", None).status == 200);
    }
}

#[test]
fn a_row_whose_write_fails_is_written_again_and_stands_once() {
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (key, viewer, server) = (refit.key(), viewer(&refit), faulty.serve(&refit));
    let mut asked = Vec::new();
    for nth in 1..=8 {
        faulty.fail("write", EIO, nth..=nth, "requests/");
        asked.extend((0..5).map(|_| id(&ask(&server, &key, "hi"))));
        faulty.heal();
    }
    wait_for("every row", || {
        let log = server.get("/status", Some(&viewer)).json()["log"].clone();
        log["kept"] == 0 && log["pending"] == 0
    });
    drop(server);
    drop(refit.serve(&[]));
    assert_eq!((ids(&refit), rows_in(&refit.data_dir()).0), (asked.into_iter().collect(), 40));
}

/// Rows that are written together: where that fails each stands by itself.
#[test]
fn rows_of_many_at_once_stand_once_each_whichever_write_fails() {
    let (up, refit) = (upstream(|stream, _| says(stream, "words")), Refit::new());
    refit.write("refit.toml", provider(up.port));
    let faulty = Faulty::new(&refit);
    let (key, viewer, server) = (refit.key(), viewer(&refit), faulty.serve(&refit));
    let acknowledged = Mutex::new(Vec::new());
    // Long ones are written by themselves, in between.
    let requests = [chat("up/m", "a few words", json!({})), chat("up/m", &"words ".repeat(5_000), json!({}))];
    for nth in [1, 2, 5, 20] {
        let (ended, before) = (AtomicBool::new(false), acknowledged.lock().expect("list").len());
        faulty.fail("write", EIO, nth..=nth + 1, "requests/");
        std::thread::scope(|scope| {
            for caller in 0..16 {
                let (server, key, acknowledged, ended) = (&server, &key, &acknowledged, &ended);
                let request = &requests[usize::from(caller % 4 == 0)];
                scope.spawn(move || load(server, key, acknowledged, ended, request));
            }
            wait_for("calls", || acknowledged.lock().expect("list").len() > before + 200);
            ended.store(true, Ordering::Relaxed);
        });
        faulty.heal();
        wait_for("every row", || {
            let log = server.get("/status", Some(&viewer)).json()["log"].clone();
            log["kept"] == 0 && log["pending"] == 0
        });
    }
    drop(server);
    let acknowledged = acknowledged.into_inner().expect("list");
    assert_eq!(rows_in(&refit.data_dir()), (i64::try_from(acknowledged.len()).expect("a count"), "ok".to_string()));
    assert_eq!(ids(&refit), acknowledged.into_iter().collect());
}

/// The database is away: nobody is told that his key is wrong, and the rows wait.
#[test]
fn a_database_that_takes_no_writes_costs_no_answer_and_no_row() {
    let refit = Refit::new();
    let faulty = Faulty::new(&refit);
    let (key, viewer, server) = (refit.key(), viewer(&refit), faulty.serve(&refit));
    id(&ask(&server, &key, "before"));
    faulty.fail("write", EIO, ALL, "refit.db");
    for _ in 0..10 {
        id(&ask(&server, &key, "meanwhile"));
    }
    wait_for("the trouble", || server.get("/status", Some(&viewer)).json()["log"]["database"].is_string());
    let told = server.get("/status", Some(&viewer)).json();
    assert!(told["log"]["pending"].as_u64() >= Some(10) && told["log"]["oldest_unmoved_s"].is_u64() && told["log"]["kept"] == 0, "{told}");
    assert!(gauge(&server, "refit_log_rows_pending") >= 10.0);
    faulty.heal();
    wait_for("every row", || server.get("/status", Some(&viewer)).json()["log"]["pending"] == 0);
    assert_eq!(gauge(&server, "refit_log_rows_pending"), 0.0);
    assert_eq!(rows_in(&refit.data_dir()), (11, "ok".to_string()));
}

/// reliability.md, Durability 8.
#[test]
fn a_data_directory_that_cannot_be_written_ends_the_start_with_a_reason() {
    let refit = Refit::new();
    drop(refit.serve(&[]));
    let faulty = Faulty::new(&refit);
    faulty.fail("open,write", EROFS, ALL, "");
    let output = faulty.command(&refit, &["serve", "--port", "0"]).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(output.stdout.is_empty() && told.contains("error: ") && !told.contains("panicked"), "{told}");
    assert!(
        told.contains("read-only") || told.contains("readonly") || told.contains("Read-only") || told.contains("unable to open"),
        "{told}"
    );
    faulty.heal();
    assert_eq!(refit.serve(&[]).get("/ready", None).status, 200, "nothing was harmed");
}

#[test]
#[cfg(target_os = "linux")]
fn a_directory_in_the_place_of_the_database_is_named() {
    let refit = Refit::new();
    std::fs::create_dir_all(refit.data_dir().join("refit.db")).expect("a directory");
    let done = refit.run(&["serve", "--port", "0"]).expect(2);
    assert!(done.stderr.contains("refit.db") && done.stdout.is_empty(), "{done:?}");
}

/// reliability.md, Durability 9.
#[test]
fn a_damaged_database_is_named_and_never_opens_a_door() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for _ in 0..50 {
        id(&ask(&server, &key, &"words ".repeat(200)));
    }
    drop(server);
    let path = refit.data_dir().join("refit.db");
    rusqlite::Connection::open(&path).expect("opens").pragma_update(None, "wal_checkpoint", "TRUNCATE").ok();
    let intact = std::fs::read(&path).expect("bytes");
    // The first page: no database any more.
    let mut damaged = intact.clone();
    damaged[..100].fill(0xa5);
    std::fs::write(&path, &damaged).expect("written");
    let done = refit.run(&["serve", "--port", "0"]).expect(2);
    assert!(done.stderr.contains("error: ") && (done.stderr.contains("damaged") || done.stderr.contains("not a database")), "{done:?}");
    // Every page but the first: it opens, and whoever reads a damaged page says so.
    let mut damaged = intact.clone();
    damaged[4_096..].iter_mut().for_each(|byte| *byte ^= 0xa5);
    std::fs::write(&path, &damaged).expect("written");
    let done = refit.run(&["doctor", "--json"]).expect(2);
    assert!(done.json().to_string().contains("damaged") || done.json().to_string().contains("malformed"), "{done:?}");
    let done = refit.run(&["key", "list"]);
    assert!(done.code == 2 && done.stderr.contains("damaged"), "{done:?}");
    std::fs::write(&path, &intact).expect("written");
    assert_eq!(refit.serve(&[]).get("/ready", None).status, 200);
}

#[test]
fn a_file_with_a_flipped_byte_is_never_served() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let made = upload(&server, &key, &"{\"a\": 1}\n".repeat(1_000)).json();
    let path = format!("/v1/files/{}/content", made["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path, Some(&key)).status, 200);
    let mut files: Vec<_> = walk(&refit.data_dir().join("uploads"));
    let file = files.pop().expect("the bytes");
    let mut bytes = std::fs::read(&file).expect("bytes");
    bytes[4_000] ^= 1;
    std::fs::write(&file, &bytes).expect("written");
    let refused = server.get(&path, Some(&key));
    assert!(refused.status == 500 && refused.body.len() < 1_000, "{} bytes with status {}", refused.body.len(), refused.status);
    assert_eq!(refused.json()["error"]["code"], "corrupt_data");
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// The steps of the schema.
const STEPS: [&str; 12] = [
    include_str!("../../src/store/migrations/0001_spine.sql"),
    include_str!("../../src/store/migrations/0002_files_batches.sql"),
    include_str!("../../src/store/migrations/0003_gateway.sql"),
    include_str!("../../src/store/migrations/0004_prompts.sql"),
    include_str!("../../src/store/migrations/0005_evals.sql"),
    include_str!("../../src/store/migrations/0006_datasets.sql"),
    include_str!("../../src/store/migrations/0007_openai_evals.sql"),
    include_str!("../../src/store/migrations/0008_scoring.sql"),
    include_str!("../../src/store/migrations/0009_tuning.sql"),
    include_str!("../../src/store/migrations/0010_log.sql"),
    include_str!("../../src/store/migrations/0011_snapshots.sql"),
    include_str!("../../src/store/migrations/0012_answered_as.sql"),
];

/// A database as an earlier release left it, after so many steps.
fn of_an_earlier_schema(refit: &Refit, steps: usize) {
    std::fs::create_dir_all(refit.data_dir()).expect("a directory");
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("a database");
    database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE schema_version (version BIGINT PRIMARY KEY);").expect("a table");
    for (number, step) in (1..).zip(&STEPS[..steps]) {
        database.execute_batch(step).expect("the schema");
        database.execute("INSERT INTO schema_version (version) VALUES (?)", [number]).expect("its number");
    }
    let key = "INSERT INTO projects_probe (x) VALUES (1)";
    database.execute_batch("CREATE TABLE projects_probe (x BIGINT)").expect("a table");
    database.execute(key, []).expect("a row");
}

fn schema(refit: &Refit) -> (i64, usize, i64) {
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let version = database.query_row("SELECT MAX(version) FROM schema_version", [], |row| row.get(0)).expect("a version");
    let columns = database.prepare("SELECT * FROM requests").expect("a table").column_count();
    (version, columns, database.query_row("SELECT COUNT(*) FROM projects_probe", [], |row| row.get(0)).expect("a count"))
}

/// reliability.md, Durability 10.
#[test]
fn a_change_of_the_schema_that_breaks_off_is_as_if_it_had_not_begun() {
    let whole = Refit::new();
    of_an_earlier_schema(&whole, 2);
    drop(whole.serve(&[]));
    let after = schema(&whole);
    // Each step is done or not: nothing lies between these.
    let left_by = |steps| {
        let refit = Refit::new();
        of_an_earlier_schema(&refit, steps);
        schema(&refit)
    };
    let states: Vec<_> = (2..=STEPS.len()).map(left_by).collect();
    // Not every step adds columns to the log, but its version is another one after each.
    let grows = states.windows(2).all(|pair| pair[1].0 > pair[0].0 && pair[1].1 >= pair[0].1);
    assert!(states.last() == Some(&after) && grows && after.1 > states[0].1, "{states:?} {after:?}");
    let mut broken = 0;
    for nth in if full() { (1..=120).collect::<Vec<_>>() } else { (1..=61).step_by(6).collect() } {
        let refit = Refit::new();
        of_an_earlier_schema(&refit, 2);
        let faulty = Faulty::new(&refit);
        faulty.fail("write,sync", EIO, nth..=1_000_000, "refit.db");
        let output = faulty.command(&refit, &["key", "list", "--json"]).output().expect("runs");
        let told = String::from_utf8_lossy(&output.stderr).to_string();
        broken += usize::from(output.status.code() == Some(2));
        assert!(matches!(output.status.code(), Some(0 | 2)) && !told.contains("panicked"), "{nth}: {told}");
        let left = schema(&refit);
        assert!(states.contains(&left), "{nth}: {left:?} is none of {states:?}");
        // The next start does it.
        assert_eq!(refit.serve(&[]).get("/ready", None).status, 200);
        assert_eq!(schema(&refit), after, "{nth}");
    }
    assert!(broken >= 3, "{broken} starts were broken off");
}

#[test]
fn what_an_administrator_did_is_not_acknowledged_where_it_could_not_be_written() {
    let refit = Refit::new();
    refit.key();
    let faulty = Faulty::new(&refit);
    let keys = || refit.run(&["key", "list", "--json"]).expect(0).json().as_array().map_or(0, Vec::len);
    for nth in (1..=61).step_by(4) {
        let before = keys();
        faulty.fail("write", EIO, nth..=1_000_000, "refit.db");
        let output = faulty.command(&refit, &["key", "create", "another", "--json"]).output().expect("runs");
        faulty.heal();
        match output.status.code() {
            Some(0) => assert_eq!(keys(), before + 1),
            code => {
                // A key that nobody was shown may stand; one that was shown must.
                assert_eq!(code, Some(2), "{}", String::from_utf8_lossy(&output.stderr));
                assert!(!String::from_utf8_lossy(&output.stdout).contains("rk_"), "nobody was shown a key");
            }
        }
        refit.run(&["audit", "verify"]).expect(0);
    }
    let done: Value = refit.run(&["doctor", "--json"]).json();
    assert_eq!(done["broken"], false, "{done}");
}
