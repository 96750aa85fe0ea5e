//! `similarity`: how near the answer's meaning is to the target's: the cosine of their embeddings, 0 where it is negative. Of several
//! targets the nearest counts. Option `model`: `provider/model` or a route (`local/all-minilm-l6-v2` without it).

use super::{Asks, Case, Options, Scored, Scorer, Services};
use futures_util::future::BoxFuture;

struct Similarity {
    name: String,
    model: String,
}

/// Small, local, and free.
const MODEL: &str = "local/all-minilm-l6-v2";

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let model = options.text("model")?.unwrap_or_else(|| MODEL.into());
    options.finish()?;
    Ok(Box::new(Similarity { name, model }))
}

impl Scorer for Similarity {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let targets = case.targets()?;
            // Providers refuse empty texts.
            if case.output().trim().is_empty() {
                return Ok(0.0.into());
            }
            let texts: Vec<&str> = std::iter::once(case.output()).chain(targets.iter().map(String::as_str)).collect();
            let made = services.embed(&self.model, &texts).await.map_err(|failure| format!("{}: {failure}", failure.code().name))?;
            let Some((found, wanted)) = made.vectors.split_first() else { return Err("the provider sent no vectors".into()) };
            let best = wanted.iter().filter_map(|wanted| cosine(found, wanted)).reduce(f64::max);
            best.map(|cosine| cosine.max(0.0).into()).ok_or_else(|| "the vectors cannot be compared".to_string())
        })
    }

    fn asks(&self) -> Vec<Asks> {
        // Vectors have the length that they have.
        vec![Asks { model: self.model.clone(), has_limit: true }]
    }
}

/// The cosine of two vectors, from -1 to 1; none for vectors of different lengths and for one that is all zeros.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let length = (dot(a, a) * dot(b, b)).sqrt();
    (a.len() == b.len() && length > 0.0).then(|| (dot(a, b) / length).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_those_of_the_angle() {
        assert_eq!(cosine(&[3.0, 4.0], &[4.0, 3.0]), Some(0.96));
        assert_eq!((cosine(&[1.0], &[1.0, 0.0]), cosine(&[0.0], &[1.0])), (None, None));
        assert_eq!(cosine(&[0.1, 0.2], &[0.2, 0.4]), Some(1.0));
    }
}
