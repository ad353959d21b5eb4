//! Bars in an SVG, two for each row.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

/// One row: a figure of ours and perhaps one of theirs.
pub struct Bar {
    pub name: String,
    pub ours: f64,
    pub theirs: Option<f64>,
}

/// Rows under a title.
pub struct Plot {
    pub title: String,
    pub bars: Vec<Bar>,
}

impl Bar {
    /// One of each side.
    pub fn both(name: &str, ours: f64, theirs: f64) -> Self {
        Self { name: name.to_owned(), ours, theirs: Some(theirs) }
    }

    /// One that stands for itself.
    pub fn alone(name: &str, figure: f64) -> Self {
        Self { name: name.to_owned(), ours: figure, theirs: None }
    }
}

const WIDTH: f64 = 760.0;
const LABEL: f64 = 170.0;
const ROW: f64 = 44.0;
const TOP: f64 = 60.0;
const OURS: &str = "#b7410e";
const THEIRS: &str = "#575757";
const STAGE: &str = "#9aa5b1";

impl Plot {
    /// Writes the picture.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let most =
            self.bars.iter().flat_map(|bar| [bar.ours, bar.theirs.unwrap_or(0.0)]).fold(0.001, f64::max);
        let height = TOP + ROW * self.bars.len() as f64 + 10.0;
        let scale = (WIDTH - LABEL - 90.0) / most;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"10\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            self.title
        );
        for (x, color, name) in [
            (10.0, OURS, "corten"),
            (90.0, THEIRS, "Debian's containerd 2.1"),
            (280.0, STAGE, "a stage alone"),
        ] {
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{color}\"/><text x=\"{}\" y=\"45\">{name}</text>",
                x + 17.0
            );
        }
        for (n, bar) in self.bars.iter().enumerate() {
            let y = TOP + ROW * n as f64;
            let _ = writeln!(svg, "<text x=\"10\" y=\"{}\">{}</text>", y + 24.0, bar.name);
            let color = if bar.theirs.is_some() { OURS } else { STAGE };
            let rows =
                [(bar.ours, color, 4.0)].into_iter().chain(bar.theirs.map(|figure| (figure, THEIRS, 20.0)));
            for (figure, color, down) in rows {
                let (top, width) = (y + down, (figure * scale).max(1.0));
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LABEL}\" y=\"{top}\" width=\"{width:.1}\" height=\"14\" fill=\"{color}\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{figure:.2}</text>",
                    LABEL + width + 6.0,
                    top + 12.0
                );
            }
        }
        svg.push_str("</svg>\n");
        std::fs::write(path, svg)
    }
}
