//! Words and bytes that pass through a shell and come out as they went in.
//!
//! Nothing of a user's goes into a script but through these functions.

/// One word for a POSIX shell, whatever is in it but NUL.
pub(super) fn word(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            // Ends the quotation, has one of its own, and begins again.
            '\'' => out.push_str("'\\''"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// Bytes as a format for `printf`, in quotes. Long ones are more than one, each a command of its own.
pub(super) fn formats(bytes: &[u8]) -> impl Iterator<Item = String> + '_ {
    bytes.chunks(4096).map(|part| {
        let mut out = String::with_capacity(part.len() + 2);
        out.push('\'');
        for (n, byte) in part.iter().enumerate() {
            match byte {
                b'%' => out.push_str("%%"),
                // Some shells take a format that begins with a dash for an option.
                b'-' if n == 0 => octal(&mut out, *byte),
                b' '..=b'~' if !matches!(byte, b'\'' | b'\\') => out.push(char::from(*byte)),
                b'\n' | b'\t' => out.push(char::from(*byte)),
                _ => octal(&mut out, *byte),
            }
        }
        out.push('\'');
        out
    })
}

/// A word that also passes through a login shell that may be of any kind, and that `printf` makes what it was.
pub(super) fn octal_word(text: &str) -> String {
    let mut out = String::from("'");
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'/' | b':' | b'=' | b',' | b'@' | b'+' => {
                out.push(char::from(byte));
            }
            _ => octal(&mut out, byte),
        }
    }
    out.push('\'');
    out
}

fn octal(out: &mut String, byte: u8) {
    out.push('\\');
    for shift in [6, 3, 0] {
        out.push(char::from(b'0' + ((byte >> shift) & 7)));
    }
}

/// True for a name that a shell can have as a variable, and that is no shell's own.
pub(super) fn is_variable(name: &str) -> bool {
    const OWN: [&str; 14] = [
        "UID",
        "EUID",
        "PPID",
        "GROUPS",
        "SHELLOPTS",
        "BASHOPTS",
        "BASHPID",
        "BASH_VERSINFO",
        "LINENO",
        "OPTIND",
        "IFS",
        "PS4",
        "PWD",
        "OLDPWD",
    ];
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    // Those that begin so are the script's own.
    let ours = name.starts_with("VN_") || name == "_";
    first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_') && !ours && !OWN.contains(&name)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// The shells of this machine, of those that a device may have.
    fn shells() -> Vec<Vec<&'static str>> {
        let all = [vec!["sh"], vec!["dash"], vec!["bash"], vec!["busybox", "sh"]];
        all.into_iter()
            .filter(|s| {
                Command::new(s[0]).args(&s[1..]).args(["-c", "true"]).output().is_ok_and(|o| o.status.success())
            })
            .collect()
    }

    fn run(shell: &[&str], script: &str) -> Vec<u8> {
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    /// Many at a time, since a shell takes a while to start.
    fn words() -> impl Strategy<Value = Vec<String>> {
        let nasty = proptest::sample::select(vec![
            "'",
            "\"",
            "$HOME",
            "`id`",
            "\\",
            "\n",
            "-n",
            "!",
            "*",
            "$(id)",
            ";",
            "&",
            "~",
            "%s",
            "\\n",
            "''",
            "ä€😀",
            "\r",
            "\t",
            "\u{1}",
            "\u{81}",
            "#",
        ]);
        let word = proptest::collection::vec(prop_oneof![nasty.prop_map(str::to_owned), "[^\0]{0,6}"], 0..6);
        proptest::collection::vec(word.prop_map(|parts| parts.concat()), 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn words_come_out_as_they_went_in(words in words()) {
            let list: String = words.iter().map(|w| format!(" {}", word(w))).collect();
            let script = format!("set --{list}\nfor w in \"$@\"; do printf '%s\\000' \"$w\"; done\n");
            let want: Vec<u8> = words.iter().flat_map(|w| w.bytes().chain([0])).collect();
            for shell in shells() {
                let got = run(&shell, &script);
                prop_assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&want), "{:?}", shell);
            }
        }

        #[test]
        fn octal_words_come_out_as_they_went_in(words in words()) {
            let list: String = words.iter().map(|w| format!(" {}", octal_word(w))).collect();
            prop_assert!(!list.contains(['\n', '!', '$', '`', '"', '%']), "{list}");
            let script = format!(
                "set --{list}\nfor w in \"$@\"; do a=$(printf \"$w.\"); printf '%s\\000' \"${{a%.}}\"; done\n"
            );
            let want: Vec<u8> = words.iter().flat_map(|w| w.bytes().chain([0])).collect();
            for shell in shells() {
                let got = run(&shell, &script);
                prop_assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&want), "{:?}", shell);
            }
        }

        #[test]
        fn bytes_come_out_as_they_went_in(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let script: String = formats(&bytes).map(|f| format!("printf {f}\n")).collect();
            for shell in shells() {
                prop_assert_eq!(&run(&shell, &script), &bytes, "{:?}", shell);
            }
        }
    }

    #[test]
    fn only_names_that_a_shell_can_set_are_variables() {
        for (name, is) in [("PATH", true), ("_x1", true), ("a.b", false), ("1a", false), ("", false), ("UID", false)] {
            assert_eq!(is_variable(name), is, "{name}");
        }
    }
}
