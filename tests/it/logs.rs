//! `refit logs`: listing, following, exporting and pruning; what the log leaves out, and for how long it keeps the rest.

use crate::support::{Refit, Reply, Server};
use crate::upstream::{reply, upstream};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const CHAT: &str = "/v1/chat/completions";
const DAY_MS: i64 = 86_400_000;

fn ask(server: &Server, key: &str, model: &str, text: &str, fields: Value) -> Reply {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    server.post(CHAT, Some(key), &body)
}

fn id(reply: &Reply) -> String {
    reply.header("x-request-id").expect("an id").to_string()
}

fn shown(refit: &Refit, id: &str) -> Value {
    refit.run(&["logs", "show", id, "--json"]).expect(0).json()
}

fn ids(refit: &Refit, args: &[&str]) -> Vec<String> {
    let rows = refit.run(&[&["logs", "tail", "--json"], args].concat()).expect(0).json();
    rows.as_array().expect("rows").iter().map(|row| row["id"].as_str().expect("an id").to_string()).collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()).expect("before the year 292 million")
}

fn database(refit: &Refit) -> rusqlite::Connection {
    rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database")
}

/// So many rows with these bodies, a millisecond apart, from a time on.
fn rows(refit: &Refit, count: i64, from: i64, body: &str) {
    // Makes the tables.
    refit.run(&["logs", "tail"]).expect(0);
    let sql = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1) INSERT INTO requests \
        (id, at, project, api_key, endpoint, provider, model, streamed, status, total_ms, request, reply) \
        SELECT printf('req_%08d_%d', i, ?2), ?2 + i / 3, 'default', 'key_x', 'chat.completions', 'p', 'm', 0, 200, 1.0, ?3, ?3 FROM n";
    database(refit).execute(sql, rusqlite::params![count, from, body]).expect("rows");
}

fn count(refit: &Refit, what: &str) -> i64 {
    database(refit).query_row(&format!("SELECT COUNT(*) FROM {what}"), [], |row| row.get(0)).expect("a count")
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether any file below a directory has these bytes.
fn on_disk(directory: &Path, bytes: &str) -> bool {
    let entries = std::fs::read_dir(directory).expect("a directory").filter_map(Result::ok);
    entries.map(|entry| entry.path()).any(|path| {
        if path.is_dir() {
            return on_disk(&path, bytes);
        }
        std::fs::read(&path).is_ok_and(|file| file.windows(bytes.len()).any(|window| window == bytes.as_bytes()))
    })
}

#[test]
fn tail_is_a_line_a_request_with_its_first_words_and_no_price_that_nobody_knows() {
    let chat = json!({"id": "c1", "object": "chat.completion", "created": 7, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}})
    .to_string();
    let (port, _seen) = upstream(vec![reply("200 OK", "", &chat)]);
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nmodels = [\"m\"]\n"),
    );
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reply = ask(&server, &key, "up/m", "where \u{1b}[2J is\nmy parcel", json!({}));
    let text = refit.run(&["logs", "tail"]).expect(0).stdout;
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [&*id(&reply), "200", "up/m", "3+1", "unknown", "[2J is my parcel"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    assert!(!text.contains('\u{1b}'), "a prompt steers no terminal: {text:?}");
    let whole = refit.run(&["logs", "show", &id(&reply)]).expect(0).stdout;
    for part in
        ["cost        unknown", "tokens      3 read, 1 written", "attempts    1", "reply id    c1", "provider", "refit", "my parcel"]
    {
        assert!(whole.contains(part), "{part} is missing: {whole}");
    }
}

#[test]
fn filters_take_what_they_say() {
    let refit = Refit::new();
    let key = refit.run(&["key", "create", "k", "--project", "shop", "--json"]).expect(0).json();
    let key = key["key"].as_str().expect("a key").to_string();
    let other = refit.key();
    let server = refit.serve(&[]);
    let good = id(&ask(&server, &key, "mock/echo", "a", json!({})));
    let failed = id(&ask(&server, &key, "mock/fail", "a", json!({})));
    let refused = id(&ask(&server, &other, "nowhere/m", "a", json!({})));
    // Rows are found the same way before and after they have reached the database.
    for _ in 0..2 {
        for (args, found) in [
            (&["--status", "ok"][..], vec![&good]),
            (&["--status", "failed"], vec![&failed, &refused]),
            (&["--status", "4xx"], vec![&refused]),
            (&["--status", "200"], vec![&good]),
            (&["--model", "mock/fail"], vec![&failed]),
            (&["--model", "echo"], vec![&good]),
            (&["--model", "other/echo"], vec![]),
            (&["--project", "shop"], vec![&good, &failed]),
            (&["--route", "support"], vec![]),
            (&["--since", "1h"], vec![&good, &failed, &refused]),
            (&["--until", "1h"], vec![]),
            (&["--since", "2026-01-01", "--until", "2026-01-02T10:00:00Z"], vec![]),
            (&["--limit", "1"], vec![&refused]),
        ] {
            assert_eq!(ids(&refit, args).iter().collect::<Vec<_>>(), found, "{args:?}");
        }
        wait_for("moving", || count(&refit, "requests") == 3);
    }
    let wrong = refit.run(&["logs", "tail", "--since", "yesterday"]).expect(2);
    assert!(wrong.stderr.contains("30m, 2h, 7d"), "{wrong:?}");
}

/// A command that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn following_prints_each_request_once_as_it_ends_and_ends_with_its_reader() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let before = id(&ask(&server, &key, "mock/echo", "before", json!({})));
    let mut tail = Killed(refit.command(&["logs", "tail", "-f", "--json"]).stdout(Stdio::piped()).spawn().expect("it starts"));
    let reader = BufReader::new(tail.0.stdout.take().expect("piped"));
    let (sender, printed) = std::sync::mpsc::sync_channel(0);
    // Ends, and closes the pipe, once nobody waits for a line any more.
    std::thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let next = || {
        let line = printed.recv_timeout(Duration::from_secs(60)).expect("a line within a minute");
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    assert_eq!(next()["id"], json!(before));
    // One that came in first ends last.
    let (slow, quick) = std::thread::scope(|scope| {
        let slow = scope.spawn(|| id(&ask(&server, &key, "mock/echo", "slow", json!({"mock": {"delay_ms": 6_000}}))));
        std::thread::sleep(Duration::from_millis(300));
        let quick = id(&ask(&server, &key, "mock/echo", "quick", json!({})));
        assert_eq!(next()["id"], json!(quick));
        (slow.join().expect("an answer"), quick)
    });
    assert_ne!(slow, quick);
    assert_eq!(next()["id"], json!(slow));
    let last = id(&ask(&server, &key, "mock/echo", "last", json!({})));
    assert_eq!(next()["id"], json!(last), "and none twice");
    drop(printed);
    let begun = Instant::now();
    while tail.0.try_wait().expect("a state").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it goes on without a reader");
        ask(&server, &key, "mock/echo", "more", json!({}));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(tail.0.wait().expect("it ended").code(), Some(0));
}

#[test]
fn an_export_has_every_row_once_over_all_pages_and_the_last_moments_too() {
    let refit = Refit::new();
    let key = refit.key();
    // Three rows a millisecond: pages end in the middle of one.
    rows(&refit, 1_700, now_ms() - DAY_MS, "{}");
    let server = refit.serve(&[]);
    let newest = id(&ask(&server, &key, "mock/echo", "newest", json!({})));
    let done = refit.run(&["logs", "export"]).expect(0);
    let all = lines(&done.stdout);
    let once: HashSet<_> = all.iter().map(|row| row["id"].as_str().expect("an id").to_string()).collect();
    assert_eq!((all.len(), once.len(), once.contains(&newest)), (1_701, 1_701, true));
    assert!(done.stderr.contains("1701 requests written"), "{}", done.stderr);
    assert!(all.is_sorted_by_key(|row| row["at"].as_i64()));
    assert_eq!(lines(&refit.run(&["logs", "export", "--limit", "600"]).expect(0).stdout).len(), 600);
    let figures = lines(&refit.run(&["logs", "export", "--no-bodies", "--since", "1h"]).expect(0).stdout);
    assert_eq!((figures.len(), figures[0].get("request"), figures[0]["cost_micro_usd"].clone()), (1, None, json!(0)));
}

#[cfg(target_os = "linux")]
#[test]
fn an_export_of_much_takes_little_memory() {
    let refit = Refit::new();
    let body = json!({"text": "x".repeat(50_000)}).to_string();
    rows(&refit, 1_500, now_ms() - DAY_MS, &body);
    let mut export = refit.command(&["logs", "export"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut stdout = export.stdout.take().expect("piped");
    let mut read = 0;
    let mut piece = vec![0; 1 << 16];
    let mut most = 0;
    loop {
        let n = stdout.read(&mut piece).expect("bytes");
        read += n;
        if n == 0 {
            break;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", export.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(|kb| kb.trim().trim_end_matches(" kB").to_string());
        most = most.max(peak.and_then(|kb| kb.parse::<usize>().ok()).unwrap_or(0));
    }
    assert!(export.wait().expect("it ended").success());
    assert!(read > 150_000_000, "{read}");
    assert!((1..60 << 10).contains(&most), "{most} KiB for {read} bytes");
}

#[test]
fn conversations_to_train_on_are_whole_ones_and_corrections_win() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let good = ask(&server, &key, "mock/echo", "first", json!({"tools": null}));
    let corrected = ask(&server, &key, "mock/echo", "second", json!({"metadata": {"a": "b"}}));
    ask(&server, &key, "mock/fail", "third", json!({}));
    for (reply, value, correction) in [(&good, json!(true), json!(null)), (&corrected, json!(false), json!("what it should say"))] {
        let body = json!({"target": {"request_id": id(reply)}, "name": "helpful", "value": value, "correction": correction});
        assert_eq!(server.post("/v1/feedback", Some(&key), &body).status, 200);
    }
    let done = refit.run(&["logs", "export", "--format", "openai-chat"]).expect(0);
    let turn = |asked: &str, said: &str| json!({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]});
    assert_eq!(lines(&done.stdout), [turn("first", "first"), turn("second", "what it should say")]);
    assert!(done.stderr.contains("2 requests written; 1 have no whole conversation"), "{}", done.stderr);
    let liked =
        |least: &str| lines(&refit.run(&["logs", "export", "--format", "openai-chat", "--min-feedback", least]).expect(0).stdout).len();
    assert_eq!((liked("1"), liked("helpful=1"), liked("0"), liked("other=0")), (1, 1, 2, 0));
    let refused = refit.run(&["logs", "export", "--format", "openai-chat", "--no-bodies"]).expect(2);
    assert!(refused.stderr.contains("hint:"), "{refused:?}");
}

#[test]
fn csv_keeps_quotes_commas_and_lines_in_their_cells() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, "mock/echo", "one, \"two\"\nthree", json!({}));
    let text = refit.run(&["logs", "export", "--format", "csv"]).expect(0).stdout;
    let cells = |line: &str| {
        let (mut cells, mut quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => cells.push(String::new()),
                c => cells.last_mut().expect("one").push(c),
            }
        }
        cells
    };
    let (heading, row) = text.trim_end().split_once('\n').expect("a heading and a row");
    let (heading, cells) = (cells(heading), cells(row));
    assert_eq!(heading.len(), cells.len(), "{text}");
    let cell = |name: &str| cells[heading.iter().position(|column| column == name).expect("a column")].clone();
    assert_eq!((cell("model"), cell("status"), cell("attempts")), ("echo".into(), "200".into(), "1".into()));
    assert!(cell("request").contains("three"), "{text}");
    let figures = refit.run(&["logs", "export", "--format", "csv", "--no-bodies"]).expect(0).stdout;
    assert!(!figures.contains("three") && figures.lines().count() == 2, "{figures}");
}

/// Bodies of this size are searched on a thread of their own.
#[test]
fn large_bodies_are_redacted_too_whole_streamed_refused_and_failed() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nredact = [\"email\"]\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let text = format!("ann@x.example {} ben@x.example", "word ".repeat(60_000));
    let cases = [
        ("mock/echo", json!({}), 200, true),
        ("mock/echo", json!({"stream": true}), 200, true),
        ("mock/fail", json!({}), 502, false),
        ("mock/none", json!({}), 404, false),
        ("mock/echo", json!({"temperature": "warm"}), 400, false),
    ];
    for (model, fields, status, is_answered) in cases {
        let reply = ask(&server, &key, model, &text, fields.clone());
        assert_eq!(reply.status, status, "{model}: {fields}");
        let row = shown(&refit, &id(&reply));
        let (request, told) = (row["request"].to_string(), row["reply"].to_string());
        assert!(request.len() > 300_000 && request.contains("[email]"), "{fields}: {}", &request[..200.min(request.len())]);
        assert_eq!(is_answered, told.len() > 250_000 && told.contains("[email]"), "{fields}: {}", &told[..200.min(told.len())]);
        assert!(!row.to_string().contains("x.example"), "{fields}");
    }
}

#[test]
fn what_is_redacted_is_never_on_the_disk_and_the_caller_gets_all() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nredact = [\"email\", \"secret\"]\nredact_patterns = [\"acct-[0-9]{6}\"]\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let text = "ann@mail.example acct-123456 sk-abcdefghijklmnopqrstuvwx";
    for (path, body) in [
        (CHAT, json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}]})),
        (CHAT, json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}], "stream": true})),
        (CHAT, json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}], "metadata": {"who": text}})),
        ("/v1/messages", json!({"model": "mock/echo", "max_tokens": 99, "messages": [{"role": "user", "content": text}]})),
        ("/v1/responses", json!({"model": "mock/echo", "input": text})),
        ("/v1/completions", json!({"model": "mock/echo", "prompt": text})),
        // A call that fails is logged, too.
        (CHAT, json!({"model": "mock/fail", "messages": [{"role": "user", "content": text}]})),
    ] {
        let reply = server.post(path, Some(&key), &body);
        assert!(reply.status == 200 || body["model"] == "mock/fail", "{reply:?}");
        assert!(reply.status != 200 || reply.body.contains("acct-"), "{reply:?}");
        let row = shown(&refit, &id(&reply));
        assert!(row["request"].to_string().contains("[email] [redacted] [secret]"), "{path}: {row}");
        if reply.status == 200 {
            assert!(row["reply"].to_string().contains("[email] [redacted] [secret]"), "{path}: {row}");
        }
    }
    let escaped = format!(r#"{{"model":"mock/echo","messages":[{{"role":"user","content":"{}"}}]}}"#, text.replace('@', "\\u0040"));
    let reply = server.post_bytes(CHAT, Some(&key), escaped.as_bytes());
    assert!(shown(&refit, &id(&reply))["request"].to_string().contains("[email] [redacted]"));
    // Some rows stand in a segment still, others in the database.
    for secret in ["ann@mail", "ann\\u0040mail", "acct-123456", "abcdefghijklmnopqrstuvwx"] {
        assert!(!on_disk(&refit.data_dir(), secret), "{secret} is on the disk");
    }
    drop(server);
    assert!(!on_disk(&refit.data_dir(), "acct-123456"));
}

#[test]
fn named_fields_stay_out_and_long_bodies_are_cut() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nredact_fields = [\"user\", \"messages[].content\"]\nmax_body_bytes = 150\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let first = ask(&server, &key, "mock/echo", "private words", json!({"user": "ann-smith"}));
    let row = shown(&refit, &id(&first));
    assert_eq!(row["request"]["messages"], json!([{"role": "user", "content": "[redacted]"}]), "{row}");
    assert_eq!((&row["request"]["user"], &row["request"]["model"]), (&json!("[redacted]"), &json!("mock/echo")));
    assert!(!on_disk(&refit.data_dir(), "ann-smith"));
    let cut = &row["reply"]["refit"]["cut"];
    assert!(cut.as_str().is_some_and(|cut| cut.starts_with("the log keeps 150 of ")), "{row}");
    assert_eq!(row["reply"]["text"].as_str().map(str::len), Some(150));
    assert_eq!(row["output_tokens"], json!(2), "figures are those of the whole");
    let export = refit.run(&["logs", "export", "--format", "openai-chat"]).expect(0);
    assert_eq!(export.stdout, "", "a cut reply is nothing to train on");
}

#[test]
fn a_log_section_that_cannot_be_is_refused_with_line_and_key() {
    let refit = Refit::new();
    let text = "[log]\nredact = [\"emails\"]\nredact_patterns = [\"ok\", \"(\"]\nredact_fields = [\"$.x\"]\nretention_days = -1\n";
    refit.write("refit.toml", text);
    let done = refit.run(&["config", "check"]).expect(2);
    for part in ["line 2: log.redact[0]", "line 3: log.redact_patterns[1]", "line 4: log.redact_fields[0]", "line 5: log.retention_days"] {
        assert!(done.stderr.contains(part) || done.stdout.contains(part), "{part}: {done:?}");
    }
}

#[test]
fn serve_lets_old_rows_and_old_bodies_go_and_keeps_what_was_used() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nretention_days = 30\nbodies_retention_days = 7\n");
    rows(&refit, 450, now_ms() - 40 * DAY_MS, "{\"old\": 1}");
    rows(&refit, 450, now_ms() - 10 * DAY_MS, "{\"middle\": 1}");
    rows(&refit, 5, now_ms() - DAY_MS, "{\"new\": 1}");
    let used = "INSERT INTO usage_by_day VALUES (1, 'default', 'key_x', 'p', 'm', 450, 0, 1, 1, 0, 0, 0, 0, 0)";
    let said = "INSERT INTO feedback (project, id, request, api_key, name, value, created_at) \
        SELECT 'default', id, id, 'key_x', 'n', '1', at FROM requests WHERE request LIKE '%old%' OR request LIKE '%new%'";
    database(&refit).execute(used, []).expect("a row");
    database(&refit).execute(said, []).expect("rows");
    let (key, server) = (refit.key(), refit.serve(&[]));
    wait_for("old rows going", || count(&refit, "requests WHERE request LIKE '%old%' OR request LIKE '%middle%'") == 0);
    assert_eq!(ask(&server, &key, "mock/echo", "meanwhile", json!({})).status, 200);
    wait_for("the row of that", || count(&refit, "requests") == 456);
    assert_eq!(count(&refit, "requests WHERE request LIKE '%new%' AND reply LIKE '%new%'"), 5);
    assert_eq!(count(&refit, "requests WHERE request IS NULL AND reply IS NULL AND total_ms = 1.0"), 450, "figures stay");
    // The old day's, and what was asked meanwhile.
    assert_eq!((count(&refit, "feedback"), count(&refit, "usage_by_day")), (5, 2));
}

#[test]
fn prune_says_first_what_would_go_and_the_audit_chain_says_what_went() {
    let refit = Refit::new();
    rows(&refit, 700, now_ms() - 40 * DAY_MS, "{}");
    rows(&refit, 300, now_ms() - 10 * DAY_MS, "{}");
    let args = ["logs", "prune", "--days", "30", "--bodies-days", "7", "--json"];
    let would = refit.run(&[&args[..], &["--dry-run"]].concat()).expect(0).json();
    assert_eq!(would, json!({"requests": 700, "bodies": 300, "dry_run": true}));
    assert_eq!((count(&refit, "requests"), count(&refit, "requests WHERE request IS NULL")), (1_000, 0), "nothing went");
    assert_eq!(refit.run(&args).expect(0).json(), json!({"requests": 700, "bodies": 300, "dry_run": false}));
    assert_eq!((count(&refit, "requests"), count(&refit, "requests WHERE request IS NULL")), (300, 300));
    assert_eq!(refit.run(&args).expect(0).json(), json!({"requests": 0, "bodies": 0, "dry_run": false}));
    let chain = refit.run(&["audit", "list", "--json"]).expect(0).json();
    let pruned: Vec<_> = chain.as_array().expect("rows").iter().filter(|row| row["action"] == "logs.prune").collect();
    assert_eq!((pruned.len(), &pruned[0]["detail"]["requests"]), (1, &json!(700)), "{chain}");
    let nothing = refit.run(&["logs", "prune"]).expect(0);
    assert!(nothing.stderr.contains("keeps everything"), "{nothing:?}");
}

#[test]
fn pruning_does_not_keep_writers_waiting() {
    let refit = Refit::new();
    rows(&refit, 20_000, now_ms() - 40 * DAY_MS, &json!({"text": "x".repeat(2_000)}).to_string());
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut prune = refit.command(&["logs", "prune", "--days", "30"]).stdout(Stdio::null()).spawn().expect("it starts");
    let old = || count(&refit, "requests WHERE provider = 'p'");
    let mut steps = HashSet::new();
    while prune.try_wait().expect("a state").is_none() {
        let reply = ask(&server, &key, "mock/echo", "beside", json!({}));
        let (begun, row) = (Instant::now(), format!("requests WHERE id = '{}'", id(&reply)));
        while count(&refit, &row) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(15), "a row waited for {:?}", begun.elapsed());
        }
        steps.insert(old());
    }
    // Old rows went a few at a time, and others came in between.
    let between = steps.iter().filter(|left| (1..20_000).contains(*left)).count();
    assert!(between >= 3, "{steps:?}");
    assert_eq!(old(), 0);
}
