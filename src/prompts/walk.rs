//! A walk over a compiled template: every element with its place, blocks and inline partials from the inside, too.

use super::parse::Prompt;
use handlebars::Template;
use handlebars::template::TemplateElement;

/// Visits every element of a template, with its line and column in the body, from 1.
pub(super) fn each<'t>(template: &'t Template, visit: &mut dyn FnMut(&'t TemplateElement, (usize, usize))) {
    for (i, element) in template.elements.iter().enumerate() {
        let place = template.mapping.get(i).map_or((1, 1), |mapping| (mapping.0, mapping.1));
        visit(element, place);
        match element {
            TemplateElement::HelperBlock(helper) => {
                [&helper.template, &helper.inverse].into_iter().flatten().for_each(|inner| each(inner, visit));
            }
            TemplateElement::DecoratorBlock(inline) => inline.template.iter().for_each(|inner| each(inner, visit)),
            _ => {}
        }
    }
}

impl Prompt {
    /// The body of the source that this was read from.
    pub fn body_of<'s>(&self, source: &'s str) -> &'s str {
        let before: usize = source.split_inclusive('\n').take(self.body_line.saturating_sub(1)).map(str::len).sum();
        source[before..].trim()
    }

    /// Whether the template says where earlier messages stand (`{{history}}`).
    pub fn places_history(&self) -> bool {
        let mut found = false;
        let mut look = |element: &TemplateElement, _| match element {
            TemplateElement::Expression(helper) | TemplateElement::HtmlExpression(helper) => {
                found |= helper.name.as_name() == Some("history");
            }
            _ => {}
        };
        each(&self.body, &mut look);
        self.registry.get_templates().values().for_each(|partial| each(partial, &mut look));
        found
    }
}
