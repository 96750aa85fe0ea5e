//! Who asks for something that must be shared out fairly.

/// A caller, as far as fairness needs to know. The default is nobody in particular.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    /// Project (tenant).
    pub project: String,
    /// Id of the key, or whatever tells the callers of a project apart.
    pub key: String,
}
