//! What a reviewer would have to remember: floors, lengths, leftovers, links.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// A folder may use only folders of earlier rows.
const FLOORS: &[&[&str]] = &[
    &["model"],
    &["env", "config"],
    &["telemetry"],
    &["codec"],
    &["log", "state", "chunks"],
    &["protocol"],
    &["trust"],
    &["transport"],
    &["peer", "transfer"],
    &["replica", "datastore"],
    &["backup"],
    &["objects", "balance"],
    &["search"],
    &["web"],
    &["ctl"],
];
/// Within a row, these may use each other.
const NEIGHBOURS: &[(&str, &str)] = &[];
const FILE_LINES_MAX: usize = 900;
const FUNCTION_LINES_MAX: usize = 130;

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path()) {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if entry.is_dir() && name != "target" && name != ".git" {
            found.extend(files(&entry, extension));
        } else if entry.extension().is_some_and(|found| found == extension) {
            found.push(entry);
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn floor(folder: &str) -> Option<usize> {
    FLOORS.iter().position(|row| row.contains(&folder))
}

#[test]
fn dependencies_run_downwards() {
    let mut wrong = Vec::new();
    for file in files(&root().join("src"), "rs") {
        let relative = file.strip_prefix(root().join("src")).expect("within src").to_owned();
        let folder = relative.iter().next().and_then(|part| part.to_str()).unwrap_or_default().to_owned();
        let Some(own) = floor(&folder) else { continue };
        let text = fs::read_to_string(&file).expect("reads");
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let fine = used == folder
                    || NEIGHBOURS.contains(&(folder.as_str(), used.as_str()))
                    || floor(&used).is_none_or(|floor| floor < own);
                if !fine {
                    wrong.push(format!("{}:{}: {folder} uses {used}", relative.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_are_short_and_nothing_is_left_over() {
    let mut wrong = Vec::new();
    for file in files(&root().join("src"), "rs") {
        let text = fs::read_to_string(&file).expect("reads");
        let name = file.display();
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{name}: {lines} lines"));
        }
        for word in [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("FIX", "ME")]
        {
            if text.contains(word) {
                wrong.push(format!("{name}: {word}"));
            }
        }
        let mut start: Option<(usize, usize)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let code = line.trim_start();
            let is_function = [
                "fn ",
                "pub fn ",
                "pub(super) fn ",
                "pub(crate) fn ",
                "async fn ",
                "pub async fn ",
                "pub(super) async fn ",
            ]
            .iter()
            .any(|head| code.starts_with(head));
            if is_function {
                start = Some((number, indent));
            } else if let Some((begin, depth)) = start
                && code == "}"
                && indent == depth
            {
                if number - begin > FUNCTION_LINES_MAX {
                    wrong.push(format!("{name}:{}: a function of {} lines", begin + 1, number - begin));
                }
                start = None;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `Path::parent` of a bare name is an empty path, which names no directory: `env::fs::parent_dir` knows that.
#[test]
fn the_directory_of_a_file_is_found_in_one_place() {
    let helper = root().join("src/env/fs.rs");
    let mut wrong = Vec::new();
    for file in files(&root().join("src"), "rs").into_iter().filter(|file| *file != helper) {
        let text = fs::read_to_string(&file).expect("reads");
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, _) in product.lines().enumerate().filter(|(_, line)| line.contains(".parent()")) {
            wrong.push(format!("{}:{}: use parent_dir", file.display(), number + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for file in files(root(), "md") {
        let text = fs::read_to_string(&file).expect("reads");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let is_file = !target.is_empty() && !target.contains("://");
            if is_file && !file.parent().expect("parent").join(target).exists() {
                wrong.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The interface is made of files that the program serves: each refers to files that exist, and to nothing elsewhere.
#[test]
fn the_interface_is_whole_and_needs_nobody_else() {
    let folder = root().join("src/web/ui");
    let mut wrong = Vec::new();
    let mut sources = files(&folder, "js");
    sources.extend(files(&folder, "html"));
    sources.extend(files(&folder, "css"));
    assert!(sources.len() > 20, "{}", sources.len());
    for file in sources {
        let text = fs::read_to_string(&file).expect("reads");
        let name = file.strip_prefix(&folder).expect("within").display();
        let imports = text.split("from '").chain(text.split("import('")).skip(1);
        for path in imports.filter_map(|rest| rest.split('\'').next()).filter(|path| path.starts_with('.')) {
            if !file.parent().expect("parent").join(path).exists() {
                wrong.push(format!("{name}: {path} does not exist"));
            }
        }
        let attributes = text.split("src=\"").skip(1).chain(text.split("href=\"").skip(1));
        for path in attributes.filter_map(|rest| rest.split('"').next()).filter(|path| path.starts_with('/')) {
            if !path.starts_with("/api/") && !folder.join(path.trim_start_matches('/')).exists() && path != "/" {
                wrong.push(format!("{name}: {path} does not exist"));
            }
        }
        for word in ["eval(", "new Function", "innerHTML", "document.write"] {
            if text.contains(word) && !name.to_string().starts_with("vendor") {
                wrong.push(format!("{name}: {word}"));
            }
        }
        let hosts = ["http://", "https://"].iter().flat_map(|scheme| text.split(scheme).skip(1));
        for host in hosts.filter(|host| !host.starts_with("www.w3.org/")) {
            wrong.push(format!("{name}: refers to {}", host.chars().take(40).collect::<String>()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
