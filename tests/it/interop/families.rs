//! Every architecture beside Hugging Face transformers: small random models from folders and GGUF files, and Gemma 3 as it is shipped.

use crate::engine::all_logits;
use crate::support;
use refit::engine::{Model, Purpose};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn python(arguments: &[&Path], verb: &str) {
    let python = std::env::var("REFIT_INTEROP_PYTHON").expect("./test peft sets REFIT_INTEROP_PYTHON");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/families.py");
    let output = Command::new(python).arg(script).arg(verb).args(arguments).output().expect("python starts");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

fn floats(path: &Path, width: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).expect("logits");
    let all: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    all.chunks(width).map(<[f32]>::to_vec).collect()
}

/// The root of the mean square of the difference of two tables of logits.
fn rms(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    let sum: f64 = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / (a.len() * a[0].len()) as f64).sqrt()
}

/// The root of the mean square of logits.
fn spread(logits: &[Vec<f32>]) -> f64 {
    rms(logits, &vec![vec![0.0; logits[0].len()]; logits.len()])
}

#[test]
fn every_architecture_gives_the_logits_of_transformers_from_a_folder_and_from_gguf() {
    let directory = tempfile::tempdir().expect("a directory");
    python(&[directory.path()], "make");
    let cases = std::fs::read(directory.path().join("cases.json")).expect("cases");
    let cases: Vec<Value> = serde_json::from_slice(&cases).expect("JSON");
    assert!(cases.len() >= 8);
    for case in cases {
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
        for container in ["folder", "gguf"] {
            let Some(path) = case[container].as_str() else { continue };
            let model =
                Model::load(path.as_ref(), Purpose::ServeExact).unwrap_or_else(|error| panic!("{} {container}: {error}", case["name"]));
            let expected = floats(case["logits"].as_str().expect("a path").as_ref(), model.decoder.config().vocabulary);
            let (error, spread) = (rms(&all_logits(&model.decoder, &tokens, None), &expected), spread(&expected));
            println!("{} from {container}: logits of {spread:.3} off by {error:.6}", case["name"]);
            // Keys and values are kept in half precision, and with weights of 0.3 attention is sharp.
            assert!(error < 5e-3 * spread, "{} from {container}: logits of {spread} are off by {error}", case["name"]);
            // Bytes of the text are its tokens, and the template is the folder's.
            assert_eq!(model.tokenizer.encode("az").expect("tokens").len(), 2, "{}", case["name"]);
        }
    }
}

#[test]
fn gemma_3_270m_gives_the_logits_of_transformers() {
    let Some(file) = support::gemma_file() else {
        return support::skip("gemma_3_270m_gives_the_logits_of_transformers", "REFIT_TEST_GEMMA does not name the model file");
    };
    let directory = tempfile::tempdir().expect("a directory");
    let exact = Model::load(&file, Purpose::ServeExact).expect("the model loads");
    let tokens = exact.tokenizer.encode_prompt(crate::engine::TEXT).expect("tokens");
    let (ids, out): (PathBuf, PathBuf) = (directory.path().join("tokens.json"), directory.path().join("logits.f32"));
    std::fs::write(&ids, json!(tokens).to_string()).expect("written");
    python(&[&file, &ids, &out], "gguf");
    let expected = floats(&out, exact.decoder.config().vocabulary);
    let error = rms(&all_logits(&exact.decoder, &tokens, None), &expected);
    drop(exact);
    let served = all_logits(&Model::load(&file, Purpose::Serve).expect("the model loads").decoder, &tokens, None);
    let spread = spread(&expected);
    let rounding = rms(&served, &expected);
    let likeliest = |rows: &[Vec<f32>]| -> Vec<usize> {
        rows.iter().map(|row| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary").0).collect()
    };
    let same = likeliest(&served).iter().zip(likeliest(&expected)).filter(|(a, b)| *a == b).count();
    println!("logits of {spread:.2}: exact off by {error:.5}, as served by {rounding:.4}; {same} of {} likeliest the same", tokens.len());
    assert!(error < 1e-3 * spread, "logits of {spread} are off by {error}");
    assert!(rounding < 0.05 * spread && same * 10 >= tokens.len() * 8, "as served off by {rounding}, {same} of {} the same", tokens.len());
}
