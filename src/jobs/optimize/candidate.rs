//! Candidates: other sources of a prompt. Each is checked before it is measured, and stored as a version of `NAME.candidates`.

use super::{Request, variables};
use crate::access::audit;
use crate::prompts::library::By;
use crate::prompts::lint::{Severity, lint};
use crate::prompts::{Library, LibraryError, Prompt, walk};
use crate::store::Store;
use crate::types::{Digest, Failure};
use std::collections::HashSet;
use std::sync::Arc;

/// What the candidates of a prompt are stored under.
const SUFFIX: &str = ".candidates";
/// Most characters of a prompt's name.
const MAX_NAME: usize = 64;

/// A source that may take the prompt's place.
#[derive(Clone)]
pub(super) struct Candidate {
    /// For people: `current`, or the version that it is stored as.
    pub(super) name: String,
    /// Where it is stored.
    pub(super) reference: String,
    pub(super) source: String,
    pub(super) digest: Digest,
    pub(super) prompt: Arc<Prompt>,
}

impl Candidate {
    /// The template, without the front matter.
    pub(super) fn body(&self) -> &str {
        walk::halves(&self.source).1.trim()
    }
}

/// Checks candidates and stores them.
pub(super) struct Nursery {
    store: Store,
    library: Library,
    name: String,
    author: String,
    /// What was tried already.
    seen: HashSet<Digest>,
}

/// What becomes of a text: a reason against it, or a candidate that is stored, which may fail.
type Made = Result<Result<Candidate, Failure>, String>;

impl Nursery {
    pub(super) fn new(store: &Store, request: &Request) -> Result<Self, Failure> {
        let name: String = request.name.chars().take(MAX_NAME - SUFFIX.len()).collect();
        let (library, author) = (Library::new(store), request.author.clone());
        Ok(Nursery { store: store.clone(), library, name: format!("{name}{SUFFIX}"), author, seen: HashSet::new() })
    }

    /// The prompt as it is.
    pub(super) fn current(&mut self, request: &Request) -> Result<Candidate, Failure> {
        let prompt = Prompt::parse(&request.name, &request.source)?;
        self.seen.insert(words(&prompt, &request.source));
        let stored = self.store(&request.source, "the prompt as it was")?;
        Ok(Candidate { name: "current".into(), ..stored })
    }

    /// A candidate with another template and the same front matter.
    pub(super) fn with_body(&mut self, base: &Candidate, body: &str, message: &str) -> Made {
        // A whole file was proposed: what it says above the template does not count.
        let body = walk::halves(body).1;
        let front = match walk::halves(&base.source).0 {
            // A front matter of its own would be the candidate's otherwise.
            "" => "---\n---",
            front => front.trim_end(),
        };
        self.made(base, format!("{front}\n{}\n", body.trim()), message)
    }

    /// A candidate with the same template that shows examples of the train split.
    pub(super) fn with_examples(
        &mut self,
        base: &Candidate,
        dataset: &str,
        (count, seed): (usize, u64),
    ) -> Result<Result<Candidate, Failure>, (String, String)> {
        let line = format!("examples: {{dataset: \"{dataset}\", count: {count}, choose: random, seed: {seed}}}");
        let (front, body) = walk::halves(&base.source);
        let front = front.trim_end().strip_suffix("---").map_or("---\n", |front| front);
        let source = format!("{front}{line}\n---\n{}\n", body.trim());
        self.made(base, source.clone(), &format!("{count} examples, seed {seed}")).map_err(|reason| (reason, source))
    }

    /// Candidates that were proposed before in answer to the same question.
    pub(super) fn proposed(&mut self, key: &str) -> Result<Vec<Candidate>, Failure> {
        if self.library.newest(&self.name)?.is_none() {
            return Ok(Vec::new());
        }
        let (mut versions, _) = self.library.versions(&self.name)?;
        versions.retain(|version| version.message.starts_with(key));
        versions.sort_by_key(|version| version.version);
        let mut known = Vec::new();
        for version in versions {
            let prompt = self.library.compile(&version)?;
            if self.seen.insert(words(&prompt, &version.source)) {
                let reference = format!("{}@{}", version.prompt, version.version);
                known.push(Candidate { name: reference.clone(), reference, digest: version.digest, source: version.source, prompt });
            }
        }
        Ok(known)
    }

    fn made(&mut self, base: &Candidate, source: String, message: &str) -> Made {
        self.check(base, &source)?;
        Ok(self.store(&source, message))
    }

    /// Why a source cannot take the prompt's place, if it cannot.
    fn check(&mut self, base: &Candidate, source: &str) -> Result<(), String> {
        let prompt = Prompt::parse(&self.name, source).map_err(|error| error.to_string())?;
        let (has, wants) = (variables(&prompt), variables(&base.prompt));
        if has != wants {
            let list = |names: std::collections::BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!("its variables are ({}), and the prompt's are ({})", list(has), list(wants)));
        }
        if let Some(finding) = lint(&self.name, source).into_iter().find(|finding| finding.severity == Severity::Error) {
            return Err(format!("line {}: {} [{}]", finding.line, finding.message, finding.rule));
        }
        if !self.seen.insert(words(&prompt, source)) {
            return Err("it is the same as one that was tried already".into());
        }
        Ok(())
    }

    fn store(&self, source: &str, message: &str) -> Result<Candidate, Failure> {
        let by = By { author: &self.author, message, commit: &audit::commit(&self.store) };
        let version = match self.library.publish(&self.name, source, by) {
            Ok(published) => published.version,
            // An earlier execution proposed it, too.
            Err(LibraryError::Older { prompt, version, .. }) => self.library.get(&format!("{prompt}@{version}"))?,
            Err(error) => return Err(error.into()),
        };
        let prompt = self.library.compile(&version)?;
        let reference = format!("{}@{}", version.prompt, version.version);
        Ok(Candidate { name: reference.clone(), reference, source: version.source, digest: version.digest, prompt })
    }
}

/// What a source says: its template and its examples, white space around it left out.
fn words(prompt: &Prompt, source: &str) -> Digest {
    Digest::of(format!("{:?}\n{}", prompt.front.examples, walk::halves(source).1.trim()))
}
