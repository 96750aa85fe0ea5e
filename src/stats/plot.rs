//! Curves for people: as text for a terminal and as SVG for a page. Pure functions of points; what they mean says the caller.

use std::fmt::Write;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Points, in the order of x. Those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// Signs of the first curves in a terminal; those that follow begin again.
const SIGNS: [char; 6] = ['·', 'o', 'x', '+', '*', '#'];
/// Colours of the first curves in SVG, told apart by people who see no red or green (Okabe and Ito 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
/// Size of an SVG, in its own units.
const SIZE: (f64, f64) = (760.0, 400.0);
/// Room around the field: left, right, top, bottom.
const MARGIN: [f64; 4] = [64.0, 20.0, 44.0, 52.0];
/// Values that an axis names.
const TICKS: usize = 5;

/// The smallest and largest of both axes; none without a point.
struct Bounds {
    x: (f64, f64),
    y: (f64, f64),
}

impl Bounds {
    fn of(series: &[Series]) -> Option<Self> {
        let mut points = series.iter().flat_map(finite).peekable();
        points.peek()?;
        let empty = (f64::INFINITY, f64::NEG_INFINITY);
        let (x, y) =
            points.fold((empty, empty), |(x, y), point| ((x.0.min(point.0), x.1.max(point.0)), (y.0.min(point.1), y.1.max(point.1))));
        // A flat curve lies in the middle.
        let wide = |(low, high): (f64, f64)| if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
        Some(Bounds { x: wide(x), y: wide(y) })
    }

    /// Shares of the field, (0, 0) at the lower left.
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        ((x - self.x.0) / (self.x.1 - self.x.0), (y - self.y.0) / (self.y.1 - self.y.0))
    }
}

fn finite(series: &Series) -> impl Iterator<Item = (f64, f64)> + '_ {
    series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

/// The curves as `height` lines of `width` signs, with the largest and smallest values at the left, and a legend. Empty without a point.
pub fn text(series: &[Series], (width, height): (usize, usize)) -> String {
    let (width, height) = (width.max(8), height.max(3));
    let Some(bounds) = Bounds::of(series) else { return String::new() };
    let mut field = vec![vec![' '; width]; height];
    for (at, one) in series.iter().enumerate() {
        for point in finite(one) {
            let (x, y) = bounds.place(point);
            let (column, row) = ((x * (width - 1) as f64).round() as usize, ((1.0 - y) * (height - 1) as f64).round() as usize);
            field[row][column] = SIGNS[at % SIGNS.len()];
        }
    }
    let (high, low) = (short(bounds.y.1), short(bounds.y.0));
    let label = high.len().max(low.len());
    let mut drawn = String::new();
    for (row, signs) in field.iter().enumerate() {
        let name = if row == 0 {
            &high
        } else if row == height - 1 {
            &low
        } else {
            ""
        };
        let signs: String = signs.iter().collect();
        let _ = writeln!(drawn, "{name:>label$} │{}", signs.trim_end());
    }
    let _ = writeln!(drawn, "{:>label$} └{}", "", "─".repeat(width));
    let (first, last) = (short(bounds.x.0), short(bounds.x.1));
    let gap = width.saturating_sub(first.len() + last.len());
    let _ = writeln!(drawn, "{:>label$}  {first}{}{last}", "", " ".repeat(gap));
    let legend: Vec<_> = series.iter().enumerate().map(|(at, one)| format!("{} {}", SIGNS[at % SIGNS.len()], one.name)).collect();
    let _ = write!(drawn, "{:>label$}  {}", "", legend.join("   "));
    drawn
}

/// The curves as an SVG document of its own, without scripts or fonts from elsewhere.
pub fn svg(title: &str, (x_name, y_name): (&str, &str), series: &[Series]) -> String {
    let [left, right, top, bottom] = MARGIN;
    let (width, height) = (SIZE.0 - left - right, SIZE.1 - top - bottom);
    let mut drawn = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{left}\" y=\"22\" font-size=\"15\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        escaped(title),
        escaped(title)
    );
    let Some(bounds) = Bounds::of(series) else {
        drawn.push_str("<text x=\"64\" y=\"60\">no points</text>\n</svg>\n");
        return drawn;
    };
    let at = |point: (f64, f64)| {
        let (x, y) = bounds.place(point);
        (left + x * width, top + (1.0 - y) * height)
    };
    for tick in 0..TICKS {
        let share = tick as f64 / (TICKS - 1) as f64;
        let value = (bounds.x.0 + share * (bounds.x.1 - bounds.x.0), bounds.y.0 + share * (bounds.y.1 - bounds.y.0));
        let (x, y) = at(value);
        let _ = write!(
            drawn,
            "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            left + width,
            left - 8.0,
            y + 4.0,
            short(value.1),
            top + height + 18.0,
            short(value.0)
        );
    }
    let _ = write!(
        drawn,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        left + width / 2.0,
        SIZE.1 - 12.0,
        escaped(x_name),
        top + height / 2.0,
        escaped(y_name)
    );
    for (number, one) in series.iter().enumerate() {
        curve(&mut drawn, one, COLOURS[number % COLOURS.len()], (left + 8.0 + 170.0 * number as f64, 36.0), &at);
    }
    drawn.push_str("</svg>\n");
    drawn
}

/// A curve and its line of the legend; single points are shown where there are few.
fn curve(drawn: &mut String, series: &Series, colour: &str, legend: (f64, f64), at: &dyn Fn((f64, f64)) -> (f64, f64)) {
    let points: Vec<_> = finite(series).map(at).collect();
    let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(drawn, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>", path.join(" "));
    if points.len() <= 30 {
        for (x, y) in points {
            let _ = writeln!(drawn, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>");
        }
    }
    let (x, y) = legend;
    let _ = writeln!(drawn, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{}</text>", escaped(&series.name));
}

/// A number for an axis: three digits or so.
fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 || size == 0.0 {
        format!("{value:.2}")
    } else if size >= 0.001 {
        format!("{value:.4}")
    } else {
        format!("{value:.1e}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling() -> Vec<Series> {
        let points = (0..=10).map(|x| (f64::from(x), 10.0 - f64::from(x))).collect();
        vec![Series { name: "a<b".into(), points }, Series { name: "v".into(), points: vec![(5.0, 2.0), (7.0, f64::NAN)] }]
    }

    #[test]
    fn a_falling_curve_falls_in_a_terminal() {
        let drawn = text(&falling(), (11, 11));
        let lines: Vec<_> = drawn.lines().collect();
        assert_eq!(lines[0], "10 │·", "{drawn}");
        assert_eq!(lines[10], " 0 │          ·", "{drawn}");
        assert_eq!(lines[8].chars().filter(|c| *c == 'o').count(), 1, "{drawn}");
        assert!(lines[12].ends_with("10") && lines[13].ends_with("· a<b   o v"), "{drawn}");
        assert_eq!(text(&[], (10, 5)), "");
    }

    #[test]
    fn a_flat_curve_and_a_single_point_have_a_place() {
        let drawn = text(&[Series { name: "p".into(), points: vec![(3.0, 2.0)] }], (9, 3));
        assert_eq!(drawn.lines().nth(1).map(|line| line.trim_end().chars().last()), Some(Some('·')), "{drawn}");
    }

    #[test]
    fn an_svg_is_well_formed_and_names_are_escaped() {
        let drawn = svg("loss & more", ("step", "loss"), &falling());
        assert!(drawn.contains("a&lt;b") && drawn.contains("loss &amp; more") && !drawn.contains("NaN"), "{drawn}");
        // The first point is at the upper left of the field, the last one at the lower right.
        assert!(drawn.contains("points=\"64.0,44.0 ") && drawn.contains(" 740.0,348.0\""), "{drawn}");
        assert_eq!(drawn.matches("<svg").count(), drawn.matches("</svg>").count());
    }
}
