//! Every architecture beside Hugging Face transformers: small random models from folders and GGUF files, served and trained, and Gemma 3 as
//! it is shipped.

use crate::engine::{all_logits, trained_logits};
use crate::support::{self, Refit};
use candle_core::{Tensor, Var};
use refit::engine::adapter::AdapterConfig;
use refit::engine::arch::{Batch, Mode};
use refit::engine::nn::cross_entropy::{Label, cross_entropy};
use refit::engine::nn::linear::Lora;
use refit::engine::{Adapter, Model, Purpose};
use serde_json::{Value, json};
use std::collections::HashMap;
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

/// Small models of every family, with what peft and transformers say of training them.
fn trained_cases(directory: &Path) -> Vec<Value> {
    python(&[directory], "train");
    let cases = std::fs::read(directory.join("cases.json")).expect("cases");
    let cases: Vec<Value> = serde_json::from_slice(&cases).expect("JSON");
    assert!(cases.len() >= 8);
    cases
}

/// Tensors of a file by name.
fn tensors(path: &Path) -> HashMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let read = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    read.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// PEFT's adapter of a case, its halves as variables, and these by PEFT's names.
fn variables(model: &Model, folder: &Path) -> (Adapter, Vec<(String, Var)>) {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a PEFT folder");
    let made = model.adapter(&read("adapter_config.json"), &read("adapter_model.safetensors")).expect("peft's adapter fits");
    let (mut loras, mut variables) = (HashMap::new(), Vec::new());
    for target in model.lora_targets() {
        let lora = made.lora(&target.path).expect("every projection is adapted");
        let [a, b] = [&lora.a, &lora.b].map(|half| Var::from_tensor(half).expect("a variable"));
        loras.insert(target.path.clone(), Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: lora.scale });
        for (half, variable) in [("A", a), ("B", b)] {
            variables.push((format!("base_model.model.{}.lora_{half}.default.weight", target.path), variable));
        }
    }
    (Adapter::new(made.config.clone(), loras), variables)
}

/// The mean cross-entropy of every next token.
fn loss(model: &Model, tokens: &[u32], adapter: &Adapter) -> Tensor {
    let mut batch = Batch::default();
    batch.push(tokens, 0, 0);
    let labels: Vec<_> = (1..=tokens.len()).map(|i| tokens.get(i).copied().map(Label::once)).collect();
    let hidden = model.decoder.hidden(&batch, Mode::Train(adapter)).expect("a forward pass");
    cross_entropy(&hidden, model.decoder.head().expect("a head"), &labels, tokens.len() as f32 - 1.0).expect("a loss")
}

/// Length of a − b relative to that of b.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied()).max(1e-12)
}

/// Holds a loss and the gradients of all variables to those of the reference.
fn compare(what: &str, graph: &Tensor, variables: &[(String, Var)], (theirs, expected): (f64, &HashMap<String, Vec<f32>>)) {
    let ours = f64::from(graph.to_scalar::<f32>().expect("a loss"));
    let gradients = graph.backward().expect("a backward pass");
    let of = |variable: &Var| -> Vec<f32> {
        gradients.get(variable.as_tensor()).expect("a gradient").flatten_all().and_then(|g| g.to_vec1()).expect("values")
    };
    let farthest = variables.iter().map(|(key, variable)| (distance(&of(variable), &expected[key]), key));
    let (farthest, key) = farthest.max_by(|a, b| a.0.total_cmp(&b.0)).expect("variables");
    println!("{what}: loss {ours:.5}, the reference {theirs:.5}; gradients off by {farthest:.6} at most ({key})");
    assert!((ours - theirs).abs() < 1e-4 * theirs && farthest < 2e-3, "{what}: {ours} {theirs} {farthest} {key}");
    assert_eq!(variables.len(), expected.len(), "{what}");
}

#[test]
fn adapters_of_every_family_have_the_loss_and_the_gradients_of_peft() {
    let directory = tempfile::tempdir().expect("a directory");
    for case in trained_cases(directory.path()) {
        let name = case["name"].as_str().expect("a name");
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
        let expected = tensors(&directory.path().join(format!("{name}.lora.safetensors")));
        for container in ["folder", "gguf"] {
            let Some(path) = case[container].as_str() else { continue };
            let model = Model::load(path.as_ref(), Purpose::Train).unwrap_or_else(|error| panic!("{name} {container}: {error}"));
            let plain = Adapter::new(AdapterConfig::lora("", 1, 1.0, &[]), HashMap::new());
            let theirs = floats(case["logits"].as_str().expect("a path").as_ref(), model.decoder.config().vocabulary);
            let ours = trained_logits(&model.decoder, &tokens, &plain);
            assert!(rms(&ours, &theirs) < 1e-4 * spread(&theirs), "{name} from {container}: logits are off by {}", rms(&ours, &theirs));

            let (adapter, variables) = variables(&model, &directory.path().join(format!("{name}.peft")));
            let theirs = case["lora"].as_f64().expect("a loss");
            compare(&format!("{name} from {container}"), &loss(&model, &tokens, &adapter), &variables, (theirs, &expected));

            // What is trained is what is served.
            let serving = Model::load(path.as_ref(), Purpose::ServeExact).expect("it loads");
            let read = |file: &str| std::fs::read(directory.path().join(format!("{name}.peft")).join(file)).expect("a file");
            let served = serving.adapter(&read("adapter_config.json"), &read("adapter_model.safetensors")).expect("it fits");
            let served = all_logits(&serving.decoder, &tokens, Some(&std::sync::Arc::new(served)));
            let trained = trained_logits(&model.decoder, &tokens, &adapter);
            assert!(rms(&served, &trained) < 5e-3 * spread(&trained), "{name} from {container}: served otherwise than trained");
            // With products in bfloat16, if the processor has them.
            let rounded = Model::load(path.as_ref(), Purpose::TrainRounded).expect("it loads");
            let rounded = f64::from(loss(&rounded, &tokens, &adapter.detached()).to_scalar::<f32>().expect("a loss"));
            println!("{name} from {container}: rounded {rounded:.5}");
            assert!((rounded - theirs).abs() < 0.05 * theirs, "{name} from {container}: {rounded} rounded, {theirs}");
        }
    }
}

/// Exports of an adapter on a base, each read back: what gives its logits here, and the folder that transformers is to read.
fn merged(refit: &Refit, stored: &str, base: &str, peft: &Path) -> (Vec<PathBuf>, Option<PathBuf>) {
    refit.run(&["model", "pull", base, "--name", stored]).expect(0);
    let adapter = format!("{stored}:a");
    refit.run(&["tune", "import", &peft.display().to_string(), &adapter]).expect(0);
    let (mut readable, mut folder) = (Vec::new(), None);
    for format in ["merged-safetensors", "merged-gguf", "gguf-lora", "peft"] {
        let out = format!("{stored}-{format}");
        let more: &[&str] = if format.starts_with("merged") { &["--elements", "f32"] } else { &[] };
        let ran = refit.run(&[&["tune", "export", &adapter, &out, "--format", format][..], more].concat());
        // A table of rotary factors has no place in config.json.
        if format == "merged-safetensors" && stored == "llama-llama3-gguf" {
            assert!(ran.expect(2).stderr.contains("rope_freqs.weight"));
            continue;
        }
        ran.expect(0);
        let out = refit.path().join(out);
        match format {
            "merged-safetensors" => {
                readable.push(out.clone());
                folder = Some(out);
            }
            "merged-gguf" => readable.push(out.join("model.gguf")),
            _ => {}
        }
    }
    (readable, folder)
}

#[test]
fn merged_models_of_every_family_give_the_logits_of_peft() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |file: String| directory.path().join(file);
    let refit = Refit::new();
    let (mut jobs, mut all) = (Vec::new(), Vec::new());
    for case in trained_cases(directory.path()) {
        let name = case["name"].as_str().expect("a name").to_string();
        let peft = place(format!("{name}.peft"));
        let expected = place(format!("{name}.expected.f32"));
        jobs.push(json!({"folder": case["folder"], "adapter": peft, "out": expected}));
        for container in ["folder", "gguf"] {
            let Some(base) = case[container].as_str() else { continue };
            let stored = format!("{name}-{container}");
            let (readable, folder) = merged(&refit, &stored, base, &peft);
            let theirs = folder.map(|folder| (folder, place(format!("{stored}.merged.f32"))));
            jobs.extend(theirs.iter().map(|(folder, out)| json!({"folder": folder, "adapter": null, "out": out})));
            all.push((stored, readable, theirs.map(|(_, out)| out), expected.clone()));
        }
    }
    let list = place("jobs.json".into());
    std::fs::write(&list, json!(jobs).to_string()).expect("written");
    python(&[&list], "logits");
    for (stored, readable, theirs, expected) in all {
        let expected = floats(&expected, 288);
        if let Some(theirs) = theirs {
            let error = rms(&floats(&theirs, 288), &expected);
            println!("{stored} in transformers: off by {error:.7} of {:.3}", spread(&expected));
            assert!(error < 1e-4 * spread(&expected), "{stored} in transformers: off by {error}");
        }
        for path in readable {
            let model = Model::load(&path, Purpose::ServeExact).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let tokens: Vec<u32> = (0..48).map(|i| (i * 37 + 11) % 256).collect();
            let error = rms(&all_logits(&model.decoder, &tokens, None), &expected);
            println!("{}: off by {error:.6} of {:.3}", path.display(), spread(&expected));
            assert!(error < 5e-3 * spread(&expected), "{}: off by {error}", path.display());
        }
    }
}

#[test]
fn all_weights_of_every_family_have_the_gradients_of_transformers() {
    let directory = tempfile::tempdir().expect("a directory");
    for case in trained_cases(directory.path()) {
        let name = case["name"].as_str().expect("a name");
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
        let expected = tensors(&directory.path().join(format!("{name}.full.safetensors")));
        for container in ["folder", "gguf"] {
            let Some(path) = case[container].as_str() else { continue };
            let model = Model::load(path.as_ref(), Purpose::TrainWeights).expect("it loads");
            let variables = model.decoder.variables().expect("variables");
            let nothing = Adapter::new(AdapterConfig::lora("", 1, 1.0, &[]), HashMap::new());
            let theirs = case["full"].as_f64().expect("a loss");
            compare(&format!("{name} from {container}"), &loss(&model, &tokens, &nothing), &variables, (theirs, &expected));
        }
    }
}
