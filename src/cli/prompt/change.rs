//! `refit prompt publish`, `promote`, `rollback`, `unlabel`: changes of the library, each with its row in the audit chain.

use super::of_file;
use crate::access::audit;
use crate::cli::{Context, output};
use crate::config::PromptsConfig;
use crate::evals::protect::{self, Promotion};
use crate::prompts::library::By;
use crate::prompts::{Library, sync};
use crate::store::Store;
use crate::store::prompts::LabelMove;
use crate::types::Failure;
use std::path::{Path, PathBuf};

/// Arguments of `refit prompt publish`.
#[derive(clap::Args)]
pub struct Publish {
    /// A .prompt file
    file: PathBuf,
    /// Name [default: the file's own name]
    #[arg(long)]
    name: Option<String>,
    /// Version that the file was edited from: number, label, digest, "none", or "*" for whatever is there [default: the one that the
    /// file was the same as last]
    #[arg(long, value_name = "VERSION")]
    parent: Option<String>,
    /// Why
    #[arg(long, short, default_value = "")]
    message: String,
    /// Print the version as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `refit prompt promote`.
#[derive(clap::Args)]
pub struct Promote {
    /// The version
    reference: String,
    /// The label, such as staging or production
    label: String,
    /// Why
    #[arg(long, short, default_value = "")]
    message: String,
    /// Set the gate of a protected label aside; -m says why
    #[arg(long)]
    force: bool,
    /// Print the move as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of verbs about a label.
#[derive(clap::Args)]
pub struct OfLabel {
    /// Name
    name: String,
    /// The label
    label: String,
    /// Why
    #[arg(long, short, default_value = "")]
    message: String,
    /// Print the move as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `refit prompt rollback`.
#[derive(clap::Args)]
pub struct Rollback {
    #[command(flatten)]
    of: OfLabel,
    /// Put a protected label back where no proof let it go; -m says why
    #[arg(long)]
    force: bool,
}

/// Arguments of `refit prompt unlabel`.
#[derive(clap::Args)]
pub struct Unlabel {
    #[command(flatten)]
    of: OfLabel,
    /// Take a protected label away; -m says why
    #[arg(long)]
    force: bool,
}

/// A library that is to be changed.
pub struct Changing {
    store: Store,
    library: Library,
    author: String,
    config: PromptsConfig,
}

impl Changing {
    /// The library of a context.
    pub fn open(context: &Context) -> Result<Self, Failure> {
        let store = context.open_store()?;
        Ok(Changing { library: Library::new(&store), store, author: context.actor(), config: context.config()?.prompts })
    }

    /// Stores a file as the next version.
    pub fn publish(&self, args: &Publish) -> Result<(), Failure> {
        let (stem, source) = of_file(&args.file)?;
        let name = args.name.clone().unwrap_or(stem);
        let parent = match &args.parent {
            Some(word) => self.library.parent(&name, word)?,
            None => sync::edited_from(&self.store, &args.file, &name)?,
        };
        let commit = audit::commit(&self.store);
        let published =
            self.library.publish_from(&name, &source, parent, By { author: &self.author, message: &args.message, commit: &commit })?;
        let version = &published.version;
        sync::remember(&self.store, Path::new(&args.file), &name, version.digest)?;
        if !published.is_new {
            output::note(format!("{}@{} has this content already", version.prompt, version.version));
        }
        if args.json {
            return output::json(version);
        }
        output::line(format!("{}@{} {}", version.prompt, version.version, version.digest))
    }

    /// Points a label at a version.
    pub fn promote(&self, args: &Promote) -> Result<(), Failure> {
        let commit = audit::commit(&self.store);
        let by = By { author: &self.author, message: &args.message, commit: &commit };
        let promotion = Promotion { reference: &args.reference, label: &args.label, force: args.force };
        moved(&protect::promote(&self.store, &self.library, &self.config, promotion, by)?, args.json)
    }

    /// Points a label back to where it stood before.
    pub fn rollback(&self, args: &Rollback) -> Result<(), Failure> {
        let (of, commit) = (&args.of, audit::commit(&self.store));
        let by = By { author: &self.author, message: &of.message, commit: &commit };
        moved(&protect::rollback(&self.library, &self.config, (&of.name, &of.label), args.force, by)?, of.json)
    }

    /// Takes a label away.
    pub fn unlabel(&self, args: &Unlabel) -> Result<(), Failure> {
        let (of, commit) = (&args.of, audit::commit(&self.store));
        let by = By { author: &self.author, message: &of.message, commit: &commit };
        moved(&protect::remove(&self.library, &self.config, (&of.name, &of.label), args.force, by)?, of.json)
    }
}

fn moved(step: &LabelMove, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(step);
    }
    for verdict in step.detail["verdicts"].as_array().into_iter().flatten() {
        output::note(format!("passed: {}", verdict["reason"].as_str().unwrap_or_default()));
    }
    let place =
        |version: Option<i64>| version.filter(|version| *version > 0).map_or("nowhere".into(), |version| format!("version {version}"));
    output::line(format!("{}: {} -> {}", step.label, place(step.from_version), place(Some(step.to_version))))
}
