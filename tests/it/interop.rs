//! Our adapters in other people's software, and other people's models in ours ([`families`]). Runs in `./test peft` (part of `./test --full`), which installs what it needs; the group
//! `blackbox` leaves this module out.

mod families;

use crate::engine::{TEXT, adapter, trainable, trained_logits};
use crate::support;
use serde_json::json;
use std::process::Command;

/// Logits differ by rounding only; those of this model reach 30.
const TOLERANCE: &str = "0.001";

#[test]
fn peft_folder_gives_the_same_logits_in_hugging_face_peft() {
    let python = std::env::var("REFIT_INTEROP_PYTHON").expect("./test peft sets REFIT_INTEROP_PYTHON");
    let file = support::model_file().expect("./test peft sets REFIT_TEST_MODEL");
    let model = trainable().expect("the model");
    let made = adapter(&model, 7);
    let tokens = model.tokenizer.encode(TEXT).expect("tokens");
    let logits = trained_logits(&model.decoder, &tokens, &made);
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("peft")).expect("a folder");
    std::fs::write(path("peft/adapter_config.json"), made.to_config_json()).expect("written");
    std::fs::write(path("peft/adapter_model.safetensors"), made.to_safetensors(None).expect("saved")).expect("written");
    let bytes: Vec<u8> = logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
    std::fs::write(path("logits.f32"), bytes).expect("written");
    let case = json!({"tokens": tokens, "logits_file": path("logits.f32"), "vocabulary": logits[0].len()});
    std::fs::write(path("case.json"), case.to_string()).expect("written");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/peft_load.py");
    let mut command = Command::new(python);
    command.arg(script).arg(file).arg(path("peft")).arg(path("case.json")).arg(TOLERANCE);
    let output = command.output().expect("python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}\n{stderr}");
}
