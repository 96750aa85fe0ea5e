//! Two texts side by side: unified line differences, for sources and for what is rendered.

/// Unified text diff; empty when the texts are equal. Each side has a name.
pub fn text((old_name, old): (&str, &str), (new_name, new): (&str, &str)) -> String {
    let diff = similar::TextDiff::from_lines(old, new);
    diff.unified_diff().context_radius(3).header(old_name, new_name).to_string()
}
