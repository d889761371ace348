//! A host file: the machines on which our own launcher starts ranks, and the number of ranks on each.
//!
//! ```text
//! # two machines
//! node01 slots=4
//! me@node02            # one rank
//! ```

use autodist_spec::InputError;

/// The maximum number of ranks of a job.
const MOST: usize = 64;
const LINE: &str =
    "each line is `<host> slots=<ranks>`, e.g. `node01 slots=4`; without slots the host gets one rank";

/// A line of a host file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// The host's name for ssh: a name, an address or an alias of its configuration, optionally with a user.
    pub name: String,
    /// Number of ranks on the host.
    pub slots: usize,
    /// File and line, for messages.
    pub place: String,
}

/// Reads a host file called `file`.
///
/// # Errors
/// An invalid line, with its number; a file without hosts.
pub fn parse(file: &str, content: &[u8]) -> Result<Vec<HostEntry>, InputError> {
    let whole = |problem: &str, hint: &str| InputError::new("", "", problem).hint(hint).in_file(file);
    let text = std::str::from_utf8(content).map_err(|_| whole("expected UTF-8 text", LINE))?;
    let mut hosts: Vec<HostEntry> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        let place = format!("{file}:{}", index + 1);
        let host = host(name, words).map_err(|error| error.in_file(&place))?;
        if let Some(known) = hosts.iter().find(|known| known.name == name) {
            let error = InputError::new("host", name, format!("is already listed at {}", known.place));
            return Err(error.hint("list every host once, with all its slots").in_file(&place));
        }
        hosts.push(HostEntry { place, ..host });
    }
    if hosts.is_empty() {
        return Err(whole("no host is listed", LINE));
    }
    let slots: usize = hosts.iter().map(|host| host.slots).sum();
    if slots > MOST {
        let problem = format!("must be at most {MOST}, the largest number of ranks");
        return Err(InputError::new("total slots", slots, problem)
            .hint("remove hosts, or lower their slots")
            .in_file(file));
    }
    Ok(hosts)
}

fn host<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Result<HostEntry, InputError> {
    let wrong = |field: &str, value: &str, problem: String| InputError::new(field, value, problem).hint(LINE);
    if name.starts_with('-') {
        return Err(wrong(
            "host",
            name,
            "must not begin with `-`, because ssh would take it for an option".to_owned(),
        ));
    }
    if let Some((before, slots)) = name.split_once(':')
        && !slots.is_empty()
        && slots.bytes().all(|byte| byte.is_ascii_digit())
    {
        let error = InputError::new("host", name, "must not have the slots after a colon");
        return Err(error.hint(format!("write `{before} slots={slots}`")));
    }
    let odd = |c: char| !(c.is_alphanumeric() || "._-@:[]%".contains(c));
    if let Some(odd) = name.chars().find(|c| odd(*c)) {
        return Err(wrong("host", name, format!("must not contain `{odd}`")));
    }
    let mut slots = None;
    for word in words {
        let Some(count) = word.strip_prefix("slots=").filter(|_| slots.is_none()) else {
            return Err(wrong("line", word, "expected `slots=<ranks>`".to_owned()));
        };
        match count.parse::<usize>() {
            Ok(count) if (1..=MOST).contains(&count) => slots = Some(count),
            _ => return Err(wrong("slots", count, format!("must be a number from 1 to {MOST}"))),
        }
    }
    Ok(HostEntry { name: name.to_owned(), slots: slots.unwrap_or(1), place: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_comments_and_slots() {
        let text = "# mine\n\nnode01 slots=4\n  me@node02\t# one\n[fe80::1%eth0] slots=2\n10.0.0.7#\n";
        let hosts = parse("hosts.txt", text.as_bytes()).unwrap();
        let found: Vec<(&str, usize, &str)> =
            hosts.iter().map(|host| (host.name.as_str(), host.slots, host.place.as_str())).collect();
        let expected = [
            ("node01", 4, "hosts.txt:3"),
            ("me@node02", 1, "hosts.txt:4"),
            ("[fe80::1%eth0]", 2, "hosts.txt:5"),
            ("10.0.0.7", 1, "hosts.txt:6"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("", "hosts.txt: no host is listed"),
            ("# nobody\n\n", "hosts.txt: no host is listed"),
            ("a\nb slots=0", "hosts.txt:2: `slots` is `0`: must be a number from 1 to 64"),
            ("a slots=", "hosts.txt:1: `slots`"),
            ("a slots=-1", "`slots` is `-1`"),
            ("a slots=1e3", "`slots` is `1e3`"),
            ("a slots=99999999999999999999", "must be a number"),
            ("a slots=65", "must be a number"),
            ("a slots=2 slots=3", "`line` is `slots=3`: expected `slots=<ranks>`"),
            ("a 4", "`line` is `4`: expected `slots=<ranks>`"),
            ("a slots = 4", "`line` is `slots`: expected `slots=<ranks>`"),
            (
                "-oProxyCommand=reboot",
                "hosts.txt:1: `host` is `-oProxyCommand=reboot`: must not begin with `-`",
            ),
            ("a;reboot", "must not contain `;`"),
            ("$(reboot)", "must not contain `$`"),
            ("a:4", "`host` is `a:4`: must not have the slots after a colon\nhint: write `a slots=4`"),
            ("a slots=2\nb\na", "hosts.txt:3: `host` is `a`: is already listed at hosts.txt:1"),
            ("a slots=60\nb slots=5", "hosts.txt: `total slots` is `65`: must be at most 64"),
        ] {
            let error = parse("hosts.txt", text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
            assert!(!error.hint.is_empty(), "no way out: {error}");
        }
        assert!(parse("hosts.txt", b"a\xff").unwrap_err().to_string().contains("UTF-8"));
    }
}
