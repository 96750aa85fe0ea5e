//! Modelfiles, which Ollama makes models of. The chat template is the one that the GGUF file holds; Ollama reads it there.

/// For an adapter on a base: a name that Ollama knows, or a file.
pub(super) fn on_base(base: &str, adapter: &str) -> String {
    format!(
        "# ollama create NAME -f Modelfile\n# The adapter fits this base alone: replace FROM with the same model, at best not quantised.\nFROM {base}\nADAPTER {adapter}\n"
    )
}

/// For a merged model.
pub(super) fn of_file(file: &str) -> String {
    format!("# ollama create NAME -f Modelfile\nFROM {file}\n")
}
