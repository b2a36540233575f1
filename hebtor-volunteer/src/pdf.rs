//! Lines of text as a PDF to print: A4, in the Helvetica that every reader has; with a file attached.

use pdf_writer::{Content, Name, Pdf, Rect, Ref, Str, TextStr};

/// A4, in points, and what stays free at each edge.
const WIDTH: f32 = 595.0;
const HEIGHT: f32 = 842.0;
const MARGIN: f32 = 56.0;

/// Sizes of text, and the way from one line to the next.
const SIZE: f32 = 10.0;
const TITLE_SIZE: f32 = 16.0;
const FOOT_SIZE: f32 = 8.0;
const LEADING: f32 = 14.0;

/// Characters on a line: as many digits as there is room for. Most letters are narrower.
const COLUMNS: usize = 86;

/// Lines on a page.
const ROWS: usize = 52;

const PLAIN: Name<'static> = Name(b"F1");
const BOLD: Name<'static> = Name(b"F2");

/// The first line is the title. Lines that are too long go on below, as far in as they begin. What is not ASCII
/// becomes a question mark. The attached file, of this name, is in the PDF as it is.
pub fn write(lines: &[String], (name, file): (&str, &[u8])) -> Vec<u8> {
    let lines: Vec<String> = lines.iter().flat_map(|line| wrapped(line)).collect();
    let pages: Vec<&[String]> = lines.chunks(ROWS).collect();
    let mut last = 0;
    let mut next = || {
        last += 1;
        Ref::new(last)
    };
    let (catalog, tree, info, plain, bold) = (next(), next(), next(), next(), next());
    let (attachment, bytes) = (next(), next());
    let ids: Vec<(Ref, Ref)> = pages.iter().map(|_| (next(), next())).collect();

    let mut pdf = Pdf::new();
    let mut root = pdf.catalog(catalog);
    root.pages(tree);
    root.names().embedded_files().names().insert(Str(name.as_bytes()), attachment);
    drop(root);
    pdf.file_spec(attachment)
        .path(Str(name.as_bytes()))
        .unic_file(TextStr(name))
        .embedded_file_with_unicode(bytes);
    pdf.embedded_file(bytes, file);
    pdf.document_info(info).title(TextStr(lines.first().map_or("", String::as_str)));
    let count = i32::try_from(pages.len()).unwrap_or(i32::MAX);
    pdf.pages(tree).kids(ids.iter().map(|(page, _)| *page)).count(count);
    for (id, name) in [(plain, "Helvetica"), (bold, "Helvetica-Bold")] {
        let mut font = pdf.type1_font(id);
        font.base_font(Name(name.as_bytes())).encoding_predefined(Name(b"WinAnsiEncoding"));
    }
    for (n, (rows, (id, content))) in pages.iter().zip(ids).enumerate() {
        let mut page = pdf.page(id);
        page.parent(tree).media_box(Rect::new(0.0, 0.0, WIDTH, HEIGHT)).contents(content);
        page.resources().fonts().pair(PLAIN, plain).pair(BOLD, bold);
        drop(page);
        let mut text = Content::new();
        let mut show = |font, size, y, line: &str| {
            text.begin_text().set_font(font, size).next_line(MARGIN, y).show(Str(line.as_bytes())).end_text();
        };
        let mut y = HEIGHT - MARGIN;
        for (row, line) in rows.iter().enumerate() {
            match (n, row) {
                (0, 0) => show(BOLD, TITLE_SIZE, y, line),
                _ => show(PLAIN, SIZE, y, line),
            }
            y -= LEADING;
        }
        show(PLAIN, FOOT_SIZE, MARGIN / 2.0, &format!("page {} of {}", n + 1, pages.len()));
        pdf.stream(content, &text.finish());
    }
    pdf.finish()
}

/// One line as as many as it takes.
fn wrapped(line: &str) -> Vec<String> {
    let line: String =
        line.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect();
    let words = line.trim_start();
    let indent = &line[..line.len() - words.len()];
    let mut lines = vec![indent.to_owned()];
    for word in words.split(' ') {
        if let Some(last) = lines.last_mut() {
            let first = last.len() == indent.len();
            if first || last.len() + 1 + word.len() <= COLUMNS {
                if !first {
                    last.push(' ');
                }
                last.push_str(word);
                continue;
            }
        }
        lines.push(format!("{indent}{word}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(pdf: &[u8], text: &str) -> bool {
        pdf.windows(text.len()).any(|at| at == text.as_bytes())
    }

    #[test]
    fn all_lines_are_there_on_as_many_pages_as_it_takes() {
        let lines: Vec<String> = (0..120).map(|n| format!("line number {n}")).collect();
        let pdf = write(&lines, ("a.json", b"{}\n"));
        assert!(pdf.starts_with(b"%PDF-1.7") && pdf.ends_with(b"%%EOF"));
        assert!(lines.iter().all(|line| holds(&pdf, &format!("({line})"))));
        assert!(holds(&pdf, "/Count 3") && holds(&pdf, "(page 3 of 3)"));
        assert!(holds(&pdf, "\nstream\n{}\n\nendstream") && holds(&pdf, "/F (a.json)"));
        assert!(!holds(&write(&["one".into()], ("a", b"")), "page 2"));
    }

    #[test]
    fn long_lines_go_on_below_and_nothing_breaks_out() {
        let long = format!("   {}", "twelve chars ".repeat(10).trim());
        let lines = wrapped(&long);
        assert!(
            lines.len() == 2 && lines.iter().all(|l| l.len() <= COLUMNS && l.starts_with("   t")),
            "{lines:?}"
        );
        assert_eq!(wrapped(""), [""]);
        assert_eq!(wrapped("a\u{e4}\n"), ["a??"]);
        let word = "x".repeat(200);
        assert_eq!(wrapped(&word), std::slice::from_ref(&word));
        assert!(holds(&write(&["a) (b \\".into()], ("a", b"")), "(a\\) \\(b \\\\)"));
    }
}
