//! Rules that reviewers would otherwise have to check: layers, lengths, leftovers, links.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// The crates from the lowest up: a crate depends only on crates of earlier rows.
const LAYERS: &[&[&str]] = &[
    &["model"],
    &["env"],
    &["log", "state", "chunks"],
    &["protocol"],
    &["config", "runtime"],
    &["transport"],
    &["replica", "datastore"],
    &["backup", "objects"],
    &["search"],
    &["web"],
    &["ctl"],
];
/// Crates in the first rows have no tasks, connections and metrics.
const QUIET_ROWS: usize = 4;
const ONLY_ABOVE: &[&str] = &["tokio", "metrics", "quinn"];
/// Dependencies of these crates alone, so that what embeds a replica or a webserver's log does not contain them.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("clap", &["config", "ctl"]),
    ("gravwell-config", &["datastore", "backup", "web", "ctl"]),
    ("metrics-exporter-prometheus", &["ctl"]),
    ("rusty-s3", &["backup"]),
    ("tracing-subscriber", &["ctl"]),
];
/// Folders that use nothing of their crate but themselves.
const LOWER: &[&str] = &["transport/trust", "runtime/telemetry", "runtime/tasks"];
/// Folders that nothing else of their crate uses.
const UPPER: &[&str] = &["model/codec", "transport/peer", "transport/transfer"];
/// All modules of a crate from the lowest up: each uses only those before it, and itself.
const ORDERED: &[(&str, &[&str])] =
    &[("ctl", &["error", "balance", "client", "backups", "process", "checks", "commands", "args"])];
/// Folder of the commands, and its files that are no commands.
const COMMANDS: (&str, &[&str]) = ("src/ctl/commands", &["mod", "headings"]);
/// The attribute that every crate has.
const PRINTS: &str = "#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]";
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
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root")
}

/// Returns the modules of the own crate that a file uses, with their lines.
fn modules_used(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let uses = lines.flat_map(|(number, line)| line.split("crate::").skip(1).map(move |rest| (number + 1, rest)));
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    uses.map(|(number, rest)| (number, name(rest))).collect()
}

/// Returns the lines of a section of a manifest.
fn section<'a>(manifest: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let section = manifest.split(name).nth(1).unwrap_or_default().split("\n[").next().unwrap_or_default();
    section.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
}

#[test]
fn crates_depend_on_lower_ones_and_have_no_default_features() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    let row = |name: &str| LAYERS.iter().position(|row| row.contains(&name));
    for own in LAYERS.iter().copied().flatten() {
        let folder = root().join("src").join(own);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("reads");
        for line in section(&manifest, "\n[dependencies]\n") {
            seen += 1;
            let Some(name) = line.strip_suffix(".workspace = true") else {
                wrong.push(format!("{own}: {line}: versions and features belong in the root Cargo.toml"));
                continue;
            };
            let is_upward = name.strip_prefix("gravwell-").is_some_and(|used| row(used) >= row(own));
            let is_loud = row(own) < Some(QUIET_ROWS) && ONLY_ABOVE.contains(&name);
            let is_elsewhere = ONLY_IN.iter().any(|(only, crates)| *only == name && !crates.contains(own));
            if is_upward || is_loud || is_elsewhere {
                wrong.push(format!("{own} depends on {name}"));
            }
        }
        if section(&manifest, "\n[features]\n").any(|line| line.starts_with("default")) {
            wrong.push(format!("{own} has default features"));
        }
        if !fs::read_to_string(folder.join("lib.rs")).expect("reads").contains(PRINTS) {
            wrong.push(format!("{own}/lib.rs: lacks {PRINTS}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 100, "the manifests have another form: {seen}");
    let folders = fs::read_dir(root().join("src")).expect("lists").map(|entry| entry.expect("entry").path());
    let crates = folders.filter(|folder| folder.join("Cargo.toml").exists()).count();
    assert_eq!(crates, LAYERS.iter().map(|row| row.len()).sum::<usize>(), "a crate without a row");
}

#[test]
fn dependencies_within_crates_run_downwards() {
    let (mut wrong, mut files_seen) = (Vec::new(), 0);
    for folder in LOWER.iter().chain(UPPER) {
        let (package, own) = folder.split_once('/').expect("a folder of a crate");
        let room = root().join("src").join(folder);
        for file in files(&root().join("src").join(package), "rs") {
            let text = fs::read_to_string(&file).expect("reads");
            let is_within = file.starts_with(&room);
            files_seen += usize::from(is_within);
            for (number, used) in modules_used(&text) {
                let is_upward = UPPER.contains(folder) && !is_within && used == own;
                let is_outward = LOWER.contains(folder) && is_within && used != own;
                if is_upward || is_outward {
                    wrong.push(format!("{}:{number}: uses crate::{used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files_seen > 40, "the folders have moved: {files_seen}");
}

/// Returns the path of a module within a folder: `a/mod.rs` is `a`.
fn module_path(folder: &Path, file: &Path) -> Vec<String> {
    let path = file.strip_prefix(folder).expect("within").with_extension("");
    let mut names: Vec<String> = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.len() > 1 && names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// Returns the text of a file without its unit tests.
fn product(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("reads");
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

#[test]
fn modules_of_a_crate_use_only_lower_ones() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (package, order) in ORDERED {
        let folder = root().join("src").join(package);
        for file in files(&folder, "rs") {
            let own = &module_path(&folder, &file)[0];
            if own == "lib" || own == "bin" {
                continue;
            }
            let rank = |module: &str| order.iter().position(|known| *known == module);
            for (number, used) in modules_used(&product(&file)) {
                seen += 1;
                if rank(own).is_none() || rank(&used).is_none_or(|used| Some(used) > rank(own)) {
                    wrong.push(format!("{}:{number}: uses crate::{used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 200, "the modules have moved: {seen}");
}

/// Returns whether a line of a module of a command leads out of that command, to another one.
fn leaves_command(line: &str, module: &[String]) -> bool {
    let code = line.trim_start();
    if code.starts_with("//") {
        return false;
    }
    let chains = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let ups = chains.map(|chain| chain.matches("super::").count());
    code.contains("crate::commands") || ups.max().unwrap_or_default() >= module.len()
}

#[test]
fn no_command_uses_another_one() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    let folder = root().join(COMMANDS.0);
    for file in files(&folder, "rs") {
        let module = module_path(&folder, &file);
        if COMMANDS.1.contains(&module[0].as_str()) {
            continue;
        }
        seen += 1;
        for (number, line) in product(&file).lines().enumerate().filter(|(_, line)| leaves_command(line, &module)) {
            wrong.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
        }
    }
    assert!(wrong.is_empty(), "move what several commands need below them:\n{}", wrong.join("\n"));
    assert!(seen > 40, "the commands have moved: {seen}");
    let [one, inner] = ["get", "backup/args"].map(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>());
    assert!(leaves_command("use super::ls::Ls;", &one) && leaves_command("use crate::commands::ls::Ls;", &inner));
    assert!(leaves_command("    super::super::ls::run(dir)", &inner) && !leaves_command("use super::end;", &inner));
    assert!(!leaves_command("pub(super) fn run() {", &one));
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

/// Words of a private dialect that comments once were written in. `CONTRIBUTING.md` describes the style.
const MARKERS: [&str; 70] = [
    "what is",
    "what was",
    "what has",
    "what it",
    "what nothing",
    "says",
    "said",
    "word",
    "nobody",
    "whoever",
    "somebody",
    "everybody",
    "told",
    "tells",
    "tell",
    "goes on",
    "go on",
    "comes back",
    "brings",
    "set aside",
    "let go",
    "taken in",
    "given out",
    "give out",
    "taken away",
    "cleared away",
    "clear away",
    "take in",
    "beside",
    "anew",
    "begun",
    "for ever",
    "meanwhile",
    "altogether",
    "thereby",
    "once more",
    "of its own",
    "of itself",
    "by itself",
    "as it is",
    "to be had",
    "cut off",
    "is away",
    "are away",
    "went away",
    "goes away",
    "stands alone",
    "lies",
    "stretch",
    "rhythm",
    "patience",
    "mends",
    "mend",
    "mended",
    "forsaken",
    "deed",
    "wishes",
    "not understood",
    "who is",
    "who was",
    "passed over",
    "came to nothing",
    "wherever",
    "whatever it",
    "bears out",
    "borne out",
    "in the way of",
    "is to be had",
    "to be believed",
    "is there already",
];
/// Markers per 1,000 words that are allowed, in comments and in string literals.
const MARKERS_MAX: f64 = 1.5;
/// Shorter string literals are names, not sentences.
const SENTENCE_CHARS_MIN: usize = 12;

/// Counts the markers in a text that is in lower case.
fn markers(text: &str) -> usize {
    let is_word = |found: Option<char>| found.is_some_and(char::is_alphanumeric);
    let of = |marker: &str| {
        let found = text.match_indices(marker);
        found
            .filter(|(at, _)| {
                !is_word(text[..*at].chars().last()) && !is_word(text[at + marker.len()..].chars().next())
            })
            .count()
    };
    MARKERS.iter().map(|marker| of(marker)).sum()
}

fn comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = ["///", "//!", "//"].iter().find_map(|start| line.strip_prefix(start))?;
    Some(text.trim())
}

/// Returns the string literals of a line that are long enough to be sentences.
fn sentences(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2).filter(|text| text.chars().count() >= SENTENCE_CHARS_MIN)
}

/// Returns a format string without the names of its arguments.
fn without_values(text: &str) -> String {
    text.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest)).collect::<Vec<_>>().join(" ")
}

#[test]
fn comments_and_messages_are_in_plain_english() {
    let (mut wrong, mut places) = (Vec::new(), Vec::new());
    let (mut in_comments, mut in_strings) = ((0, 0), (0, 0));
    let tests = files(&root().join("tests"), "rs").into_iter().filter(|file| !file.ends_with("tidy.rs"));
    for file in files(&root().join("src"), "rs").into_iter().chain(tests) {
        let text = fs::read_to_string(&file).expect("reads");
        let mut follows_doc = false;
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{}:{}: {}", file.display(), number + 1, line.trim());
            let Some(comment) = comment(line) else {
                follows_doc = false;
                for sentence in sentences(line) {
                    let found = markers(&without_values(sentence).to_lowercase());
                    if found > 0 {
                        places.push(place());
                    }
                    in_strings = (in_strings.0 + found, in_strings.1 + sentence.split_whitespace().count());
                }
                continue;
            };
            let found = markers(&comment.to_lowercase());
            in_comments = (in_comments.0 + found, in_comments.1 + comment.split_whitespace().count());
            if found > 0 {
                places.push(place());
            }
            let is_doc = line.trim_start().starts_with("///") || line.trim_start().starts_with("//!");
            let first = comment.split_whitespace().next().unwrap_or_default();
            if is_doc && ["What", "Who", "Whoever", "Whose", "Where", "Which", "Why"].contains(&first) {
                wrong.push(format!("{}: begins with an interrogative", place()));
            }
            let is_word = comment.strip_suffix('.').is_some_and(|word| word.chars().all(char::is_alphabetic));
            if is_doc && is_word && !follows_doc {
                wrong.push(format!("{}: has one word", place()));
            }
            follows_doc = is_doc;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let per_1000 = |(found, words): (usize, usize)| found as f64 * 1000.0 / words as f64;
    let (comments, strings) = (per_1000(in_comments), per_1000(in_strings));
    println!("markers per 1,000 words: {comments:.2} in comments, {strings:.2} in string literals");
    if comments.max(strings) > MARKERS_MAX {
        wrong.extend(places);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `Path::parent` of a bare name is an empty path, which is not a directory; `env::fs::parent_dir` handles that case.
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
fn links_in_documents_have_targets() {
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

/// The user interface consists of files served by the program: each may refer only to existing files, and to nothing outside.
#[test]
fn the_interface_is_complete_and_refers_to_no_other_host() {
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

/// Returns the last argument of a call, given the text after its name.
fn last_argument(call: &str) -> &str {
    let from = call.find('(').map_or(0, |at| at + 1);
    let (mut start, mut depth, mut is_text) = (from, 1, false);
    for (at, c) in call.char_indices().skip_while(|(at, _)| *at < from) {
        match c {
            '"' => is_text = !is_text,
            _ if is_text => {}
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' if depth == 1 => return call[start..at].trim(),
            ')' | '}' | ']' => depth -= 1,
            // A trailing comma does not start another argument.
            ',' if depth == 1 && !call[at + 1..].trim_start().starts_with(')') => start = at + 1,
            _ => {}
        }
    }
    ""
}

/// Returns whether the argument is a string literal, or a constant or variable that contains one.
fn is_reason(argument: &str) -> bool {
    let argument = argument.trim_end_matches(',');
    let name = argument.rsplit("::").next().unwrap_or_default();
    let is_name = name == "why" || (!name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    is_name || (argument.len() > 2 && argument.starts_with('"') && argument.ends_with('"'))
}

/// Webservers write through [`Writes`](../src/objects/writes.rs), which compares with the version that was read;
/// writes that take effect regardless of the current version must give a reason.
#[test]
fn no_webserver_writes_blindly_without_a_reason() {
    /// Files that may create operations directly, and under which conditions.
    const ELSEWHERE: &[(&str, &str)] = &[
        ("objects/writes.rs", "the one place"),
        ("objects/claims.rs", "repairs, under conditions on all that was read"),
        ("objects/export_archive.rs", "what an archive holds"),
        ("objects/restores.rs", "a restore, see WHAT_WAS there"),
    ];
    let blind = [".overwrite", ".delete_unconditionally", "Writes::unconditional", ".unmetered"];
    let (mut wrong, mut found) = (Vec::new(), 0);
    for folder in ["objects", "search", "web"] {
        for file in files(&root().join("src").join(folder), "rs") {
            let name = file.strip_prefix(root().join("src")).expect("within src").display().to_string();
            let text = fs::read_to_string(&file).expect("reads");
            let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let is_known = ELSEWHERE.iter().any(|(known, _)| *known == name);
            for (number, line) in product.lines().enumerate() {
                let is_made = line.contains("Op::Delete {") || (line.contains("Op::Put {") && line.contains("value }"));
                if (is_made && !is_known) || (line.contains(".submit(") && name != "objects/store.rs") {
                    wrong.push(format!("{name}:{}: use Writes", number + 1));
                }
            }
            let product = if name == "objects/writes.rs" { "" } else { product };
            for call in blind.iter().flat_map(|call| product.split(call).skip(1)) {
                found += 1;
                if !is_reason(last_argument(call)) {
                    let call = call.lines().next().unwrap_or_default();
                    wrong.push(format!("{name}: a write without a reason: {call}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 20, "the names of these methods have changed: {found}");
}
