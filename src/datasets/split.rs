//! Train, validation and test: seeded, stratified by a target field, groups and near-duplicates kept on one side; or by time, the newest
//! in test. What goes where depends on the samples' content and the seed, not on their order or ids.

use super::{DatasetError, Sample, similar};
use crate::types::Digest;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Names of the three splits, in order.
pub const NAMES: [&str; 3] = ["train", "validation", "test"];
/// Similarity from which two samples stay on one side, unless the plan says otherwise.
pub const NEAR: f64 = 0.6;

/// How to split.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Seed.
    pub seed: u64,
    /// Target field whose values every split has in the same shares.
    pub by: Option<String>,
    /// Train, validation, test: shares up to 1, or counts above 1.
    pub sizes: [f64; 3],
    /// Jaccard similarity of word 3-grams from which samples are kept together.
    pub near: f64,
    /// Field of metadata, input or target: samples with the same value stand on one side.
    pub group: Option<String>,
    /// Field with a time or a number: the smallest are trained on, the largest tested.
    pub time: Option<String>,
}

/// How samples were told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By chance, with the same shares of a field where one is named.
    #[default]
    Random,
    /// By chance, groups together.
    Grouped,
    /// By time.
    Time,
    /// As the imported files say.
    Given,
}

impl Method {
    /// The method in words.
    pub fn told(self, seed: u64) -> String {
        match self {
            Method::Random | Method::Grouped => format!("seed {seed}"),
            Method::Time => "by time".into(),
            Method::Given => "as its files were".into(),
        }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Plan { seed: 7, by: None, sizes: [0.6, 0.15, 0.25], near: NEAR, group: None, time: None }
    }
}

impl Plan {
    /// How it tells samples apart.
    pub fn method(&self) -> Method {
        match (&self.time, &self.group) {
            (Some(_), _) => Method::Time,
            (None, Some(_)) => Method::Grouped,
            (None, None) => Method::Random,
        }
    }
}

/// Ids per split, in a seeded order. Counts that do not use up the dataset leave samples out.
///
/// # Errors
/// [`DatasetError::Plan`] when the sizes ask for too much, or when no sample has the field.
pub fn assign(samples: &[Sample], plan: &Plan) -> Result<BTreeMap<String, Vec<String>>, DatasetError> {
    let wanted = counts(plan, samples.len())?;
    if let Some(field) = &plan.time {
        return by_time(samples, plan, field, wanted);
    }
    if let Some(field) = &plan.by
        && samples.iter().all(|sample| sample.target_field(field).is_null())
    {
        return Err(DatasetError::Plan(format!("no sample has the target field \"{field}\" to stratify by")));
    }
    let mut taken = [0usize; 3];
    let mut splits: [Vec<(Digest, &str)>; 3] = Default::default();
    let (mut passed, total) = (0usize, samples.len());
    for stratum in strata(samples, plan).into_values() {
        for group in stratum {
            // Where the share so far is furthest behind what it should be after this group.
            passed += group.len();
            let behind = |split: usize| (wanted[split] * passed) as f64 / total as f64 - taken[split] as f64;
            let rest = total - wanted.iter().sum::<usize>();
            let unused = passed - group.len() - taken.iter().sum::<usize>();
            let left_out = (rest * passed) as f64 / total as f64 - unused as f64;
            let best = (0..3).max_by(|a, b| behind(*a).total_cmp(&behind(*b)).then(b.cmp(a))).unwrap_or(0);
            if left_out > behind(best) {
                continue;
            }
            taken[best] += group.len();
            splits[best].extend(group.iter().map(|(order, i)| (*order, samples[*i].id.as_str())));
        }
    }
    if let Some(empty) = (0..3).find(|split| wanted[*split] > 0 && taken[*split] == 0) {
        let problem = format!(
            "{} would be empty: of {total} samples so many are alike, or in one group, that one side takes them all; a larger --near keeps \
            fewer of them together",
            NAMES[empty]
        );
        return Err(DatasetError::Plan(problem));
    }
    let named = NAMES.iter().zip(splits).map(|(name, mut ids)| {
        ids.sort_unstable();
        (name.to_string(), ids.into_iter().map(|(_, id)| id.to_string()).collect())
    });
    Ok(named.collect())
}

/// Groups of near-duplicates by the value of the stratification field, in a seeded order.
fn strata(samples: &[Sample], plan: &Plan) -> BTreeMap<String, Vec<Vec<(Digest, usize)>>> {
    let texts: Vec<String> = samples.iter().map(Sample::asked).collect();
    // Above 1 nothing is alike.
    let mut pairs = if plan.near > 1.0 { Vec::new() } else { similar::pairs(&texts, plan.near) };
    if let Some(field) = &plan.group {
        pairs.extend(same(samples, field));
    }
    let group_of = similar::groups(samples.len(), &pairs);
    let mut groups: BTreeMap<usize, Vec<(Digest, usize)>> = BTreeMap::new();
    for (i, sample) in samples.iter().enumerate() {
        let order = Digest::of(format!("{}:{}", plan.seed, sample.content()));
        groups.entry(group_of[i]).or_default().push((order, i));
    }
    let mut strata: BTreeMap<String, Vec<Vec<(Digest, usize)>>> = BTreeMap::new();
    for mut group in groups.into_values() {
        group.sort_unstable();
        let field = plan.by.as_ref().map_or(String::new(), |field| samples[group[0].1].target_field(field).to_string());
        strata.entry(field).or_default().push(group);
    }
    strata.values_mut().for_each(|groups| groups.sort_unstable());
    strata
}

/// Each sample with the last one before it that has the same value of a field.
fn same(samples: &[Sample], field: &str) -> Vec<similar::Pair> {
    let mut last: HashMap<String, usize> = HashMap::new();
    let pair = |(b, sample): (usize, &Sample)| {
        let a = last.insert(sample.field(field)?.to_string(), b)?;
        Some(similar::Pair { a, b, similarity: 1.0 })
    };
    samples.iter().enumerate().filter_map(pair).collect()
}

/// The oldest in train, the newest in test; of the same time the content decides.
fn by_time(samples: &[Sample], plan: &Plan, field: &str, wanted: [usize; 3]) -> Result<BTreeMap<String, Vec<String>>, DatasetError> {
    if plan.by.is_some() || plan.group.is_some() {
        return Err(DatasetError::Plan("a split by time has neither shares of a field nor groups: leave --by and --group out".into()));
    }
    let time = |sample: &Sample| {
        let found = sample.field(field).and_then(moment);
        found.ok_or_else(|| DatasetError::Plan(format!("sample {} has no time or number in the field \"{field}\"", sample.id)))
    };
    let mut order =
        samples.iter().map(|sample| Ok((time(sample)?, sample.content(), &sample.id))).collect::<Result<Vec<_>, DatasetError>>()?;
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    // What is left out is the oldest.
    let mut rest = order.into_iter().skip(samples.len() - wanted.iter().sum::<usize>()).map(|(_, _, id)| id.clone());
    let part = |(name, count): (&&str, usize)| (name.to_string(), rest.by_ref().take(count).collect());
    Ok(NAMES.iter().zip(wanted).map(part).collect())
}

/// A time in seconds, or a number as it is.
fn moment(value: &Value) -> Option<f64> {
    let Value::String(text) = value else { return value.as_f64() };
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return Some(number).filter(|number| number.is_finite());
    }
    let civil = || TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok();
    text.parse::<Timestamp>().ok().or_else(civil).map(|time| time.as_millisecond() as f64 / 1e3)
}

fn counts(plan: &Plan, total: usize) -> Result<[usize; 3], DatasetError> {
    let shown = plan.sizes.map(|size| size.to_string()).join(", ");
    if plan.sizes.iter().any(|size| !size.is_finite() || *size < 0.0) {
        return Err(DatasetError::Plan(format!("split sizes must not be negative: {shown}")));
    }
    let shares = plan.sizes.iter().all(|size| *size <= 1.0);
    if let Some(size) = plan.sizes.iter().find(|size| !shares && size.fract() != 0.0) {
        let problem = format!("split sizes {shown} mix shares and counts: {size} is no count; give three counts or three shares up to 1");
        return Err(DatasetError::Plan(problem));
    }
    let sum: f64 = plan.sizes.iter().sum();
    let most = if shares { 1.0 + 1e-9 } else { total as f64 };
    if sum > most {
        return Err(DatasetError::Plan(format!(
            "split sizes {shown} add up to {sum}, but there are {}",
            if shares { "1.0".into() } else { total.to_string() }
        )));
    }
    if !shares {
        return Ok(plan.sizes.map(|size| size as usize));
    }
    // Cumulative rounding: the three add up to the rounded total of the shares.
    let mut counts = [0; 3];
    let (mut share, mut used) = (0.0, 0);
    for (count, size) in counts.iter_mut().zip(plan.sizes) {
        share += size;
        *count = (share * total as f64).round() as usize - used;
        used += *count;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    fn samples(count: usize) -> Vec<Sample> {
        let word = |i: usize| format!("{:x}", i * 2_654_435_761 % 99_991);
        let input = |i: usize| json!({"message": format!("{} {} {} {}", word(i), word(i + 7), word(i + 31), i)});
        let sample = |i: usize| Sample {
            id: format!("s{i}"),
            input: input(i).as_object().cloned().unwrap_or_default(),
            target: json!({ "intent": (["a", "b", "c", "c"][i % 4]) }),
            metadata: Default::default(),
        };
        (0..count).map(sample).collect()
    }

    fn plan(sizes: [f64; 3]) -> Plan {
        Plan { by: Some("intent".into()), sizes, ..Plan::default() }
    }

    #[test]
    fn groups_stay_on_one_side_and_times_in_their_order() {
        let mut samples = samples(200);
        for (i, sample) in samples.iter_mut().enumerate() {
            sample.metadata.insert("user".into(), json!(format!("u{}", i % 37)));
            sample.metadata.insert("at".into(), json!(format!("2026-{:02}-{:02}", i * 7 % 12 + 1, i * 11 % 28 + 1)));
        }
        let field = |id: &String, name: &str| samples.iter().find(|sample| sample.id == *id).expect("known").metadata[name].to_string();
        let splits = assign(&samples, &Plan { group: Some("user".into()), ..Plan::default() }).expect("splits");
        let users = |name: &str| splits[name].iter().map(|id| field(id, "user")).collect::<HashSet<_>>();
        assert!(users("train").is_disjoint(&users("test")) && users("train").is_disjoint(&users("validation")));
        assert!(splits["test"].len() > 30 && splits.values().map(Vec::len).sum::<usize>() == 200);
        let splits = assign(&samples, &Plan { time: Some("at".into()), ..Plan::default() }).expect("splits");
        let times = |name: &str| splits[name].iter().map(|id| field(id, "at")).collect::<Vec<_>>();
        assert!(
            times("train").iter().max() <= times("validation").iter().min()
                && times("validation").iter().max() <= times("test").iter().min()
        );
        assert_eq!(NAMES.map(|name| splits[name].len()), [120, 30, 50]);
        assert!(assign(&samples, &Plan { time: Some("user".into()), ..Plan::default() }).is_err());
    }

    #[test]
    fn sizes_are_exact_and_every_split_has_the_same_shares() {
        let samples = samples(450);
        for (sizes, expected) in
            [([260.0, 60.0, 130.0], [260, 60, 130]), ([0.6, 0.15, 0.25], [270, 68, 112]), ([100.0, 0.0, 50.0], [100, 0, 50])]
        {
            let splits = assign(&samples, &plan(sizes)).expect("splits");
            let found = NAMES.map(|name| splits[name].len());
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.abs_diff(expected) <= 1, "{found} is not {expected}");
            }
            let ids: HashSet<_> = splits.values().flatten().collect();
            assert_eq!(ids.len(), found.iter().sum::<usize>(), "nothing stands in two splits");
            let share = |name: &str| {
                let c = splits[name].iter().filter(|id| samples.iter().any(|s| s.id == **id && s.target["intent"] == "c")).count();
                c as f64 / splits[name].len().max(1) as f64
            };
            assert!((share("train") - 0.5).abs() < 0.03 && (share("test") - 0.5).abs() < 0.03, "{} {}", share("train"), share("test"));
        }
        assert!(assign(&samples, &plan([400.0, 60.0, 130.0])).is_err() && assign(&samples, &plan([0.9, 0.2, 0.1])).is_err());
        assert!(assign(&samples, &Plan { by: Some("intend".into()), ..plan([0.6, 0.2, 0.2]) }).is_err());
    }

    #[test]
    fn content_and_seed_decide_not_order_or_ids() {
        let mut samples = samples(200);
        let texts = |samples: &[Sample], plan: &Plan| -> Vec<String> {
            let test = assign(samples, plan).expect("splits")["test"].clone();
            test.iter().map(|id| samples.iter().find(|s| s.id == *id).expect("known").text()).collect()
        };
        let first = texts(&samples, &plan([0.6, 0.2, 0.2]));
        samples.reverse();
        samples.iter_mut().enumerate().for_each(|(i, sample)| sample.id = format!("renamed{i}"));
        assert_eq!(first, texts(&samples, &plan([0.6, 0.2, 0.2])));
        assert_ne!(first, texts(&samples, &Plan { seed: 8, ..plan([0.6, 0.2, 0.2]) }));
    }

    #[test]
    fn near_duplicates_stay_together() {
        let mut samples = samples(60);
        for i in 0..20 {
            let text = format!("{} and a few more words that both have in common, truly", samples[i].text());
            samples[i].input["message"] = text.clone().into();
            samples[i + 20].input["message"] = format!("{text}!").into();
        }
        let splits = assign(&samples, &plan([0.5, 0.25, 0.25])).expect("splits");
        let side = |id: &str| splits.iter().find(|(_, ids)| ids.iter().any(|other| other == id)).map(|(name, _)| name.clone());
        for i in 0..20 {
            assert_eq!(side(&format!("s{i}")), side(&format!("s{}", i + 20)));
        }
    }
}
