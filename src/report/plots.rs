//! Plots as SVG, by plotters.

use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use std::fmt::Display;

const SIZE: (u32, u32) = (760, 380);
const LINE: RGBColor = RGBColor(44, 95, 138);
const MARK: RGBColor = RGBColor(200, 60, 40);

/// Points joined by a line.
pub struct Curve {
    /// In the order of the line.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// Of these points.
    pub fn plain(points: Vec<(f64, f64)>) -> Curve {
        Curve { points }
    }
}

/// Curves over a logarithmic axis of losses, and marked points.
pub struct Plot {
    /// What is to the right.
    pub x: &'static str,
    /// What is upwards.
    pub y: &'static str,
    /// The axis to the right is logarithmic.
    pub log_x: bool,
    /// Lines.
    pub curves: Vec<Curve>,
    /// Points that stand out; those of one name have one entry in the legend.
    pub marks: Vec<(&'static str, (f64, f64))>,
}

fn wrong(e: impl Display) -> String {
    e.to_string()
}

impl Plot {
    /// The picture.
    pub fn svg(&self) -> Result<String, String> {
        let all = self.curves.iter().flat_map(|c| &c.points);
        let all: Vec<(f64, f64)> = all
            .copied()
            .chain(self.marks.iter().map(|m| m.1))
            .filter(|p| p.0.is_finite() && p.1.is_finite() && p.1 > 0.0)
            .collect();
        let range = |of: fn(&(f64, f64)) -> f64| {
            let values = all.iter().map(of);
            let (low, high) = values.fold((f64::INFINITY, 0.0), |(l, h): (f64, f64), v| {
                (l.min(v), h.max(v))
            });
            (low / 1.1, high * 1.1)
        };
        let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
        if all.is_empty() {
            return Err("there is nothing to plot".to_owned());
        }
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            root.fill(&WHITE).map_err(wrong)?;
            let mut builder = ChartBuilder::on(&root);
            builder
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(72);
            match self.log_x {
                true => {
                    let chart = builder
                        .build_cartesian_2d((x0..x1).log_scale(), (y0..y1).log_scale())
                        .map_err(wrong)?;
                    self.draw(chart)?;
                }
                false => {
                    let chart = builder
                        .build_cartesian_2d(0.0..x1, (y0..y1).log_scale())
                        .map_err(wrong)?;
                    self.draw(chart)?;
                }
            }
            root.present().map_err(wrong)?;
        }
        Ok(svg)
    }

    fn draw<'a, X>(
        &self,
        mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, LogCoord<f64>>>,
    ) -> Result<(), String>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.12))
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|v| short(*v))
            .y_label_formatter(&|v| format!("{v:.0e}"))
            .draw()
            .map_err(wrong)?;
        let faint = if self.curves.len() > 1 { 0.35 } else { 1.0 };
        for curve in &self.curves {
            let line = LineSeries::new(curve.points.iter().copied(), LINE.mix(faint));
            chart.draw_series(line).map_err(wrong)?;
        }
        let mut named: Vec<&str> = vec![];
        for &(name, place) in &self.marks {
            let shade = if name == self.marks[0].0 { MARK } else { BLACK };
            let point = std::iter::once(Circle::new(place, 4, shade.filled()));
            let series = chart.draw_series(point).map_err(wrong)?;
            if !named.contains(&name) {
                series
                    .label(name)
                    .legend(move |at| Circle::new(at, 4, shade.filled()));
                named.push(name);
            }
        }
        if !named.is_empty() {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.2))
                .draw()
                .map_err(wrong)?;
        }
        Ok(())
    }
}

/// From what there was, through what each part saved, to what there is.
pub fn waterfall(before: f64, saved: &[(String, f64)], after: f64) -> Result<String, String> {
    let steps = saved.len() + 2;
    let mut svg = String::new();
    {
        let height = 60 + 28 * steps as u32;
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE).map_err(wrong)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(36)
            .build_cartesian_2d(0.0..before.max(1.0) * 1.02, 0.0..steps as f64)
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(WHITE)
            .x_desc("bytes of all weights")
            .x_label_formatter(&|v| short(*v))
            .draw()
            .map_err(wrong)?;
        let (mut bars, mut at) = (vec![("original".to_owned(), 0.0, before, LINE)], before);
        for (name, saving) in saved {
            bars.push((name.clone(), at - saving, at, MARK));
            at -= saving;
        }
        bars.push(("result".to_owned(), 0.0, after, LINE));
        for (i, (name, low, high, shade)) in bars.into_iter().enumerate() {
            let y = (steps - 1 - i) as f64;
            let bar = Rectangle::new(
                [(low.min(high), y + 0.15), (low.max(high), y + 0.85)],
                shade.filled(),
            );
            chart.draw_series(std::iter::once(bar)).map_err(wrong)?;
            // Beside the bar, where there is room.
            let (at, colour) = match (high < 0.55 * before, low > 0.0) {
                (true, _) => (high.max(low), BLACK),
                (false, true) => (0.0, BLACK),
                (false, false) => (0.0, WHITE),
            };
            let style = ("sans-serif", 13).into_font().color(&colour);
            let label = format!("{name}: {}", short((high - low).abs()));
            let text = EmptyElement::at((at, y + 0.72)) + Text::new(label, (6, 0), style);
            chart.draw_series(std::iter::once(text)).map_err(wrong)?;
        }
        root.present().map_err(wrong)?;
    }
    Ok(svg)
}

/// A number with the prefix that people would say.
fn short(v: f64) -> String {
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if v.abs() >= unit {
            return format!("{:.3}", v / unit)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + name;
        }
    }
    format!("{v:.3}")
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

/// A colour from few (red) to many (blue), of a share.
pub fn heat(share: f64) -> String {
    let share = share.clamp(0.0, 1.0);
    format!("hsl({:.0} 70% 80%)", 10.0 + 200.0 * share)
}
