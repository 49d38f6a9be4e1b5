//! Pure: `$(VAR)` in values, commands, arguments and sub-paths. Kubernetes: `third_party/forked/golang/expansion`.

use crate::provider::EnvVar;

/// What became of a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub text: String,
    /// A secret is in it.
    pub secret: bool,
    /// The first name that stands for nothing, which is left as it was written.
    pub unknown: Option<String>,
}

/// `$(NAME)` becomes the variable's value when there is one, `$$` becomes `$`.
pub(crate) fn expand(text: &str, env: &[EnvVar]) -> Expanded {
    let mut out = Expanded { text: String::with_capacity(text.len()), ..Expanded::default() };
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.iter().find(|v| v.name == name) {
                Some(var) => {
                    out.text.push_str(&var.value);
                    out.secret |= var.secret;
                }
                None => {
                    out.text.extend(["$(", name, ")"]);
                    out.unknown.get_or_insert_with(|| name.to_owned());
                }
            }
            rest = after;
        } else {
            out.text.push('$');
        }
    }
    out.text.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let var = |name: &str, value: &str, secret| EnvVar { name: name.into(), value: value.into(), secret };
        let env = [var("A", "1", false), var("S", "x", true)];
        let cases = [
            ("$(A)", "1", false),
            ("a$(A)b$(S)", "a1bx", true),
            ("$$(A)", "$(A)", false),
            ("$$$(A)", "$1", false),
            ("$(NONE)", "$(NONE)", false),
            ("$(A", "$(A", false),
            ("$A $", "$A $", false),
            ("", "", false),
        ];
        for (text, want, secret) in cases {
            let got = expand(text, &env);
            assert_eq!((got.text.as_str(), got.secret), (want, secret), "{text}");
            assert_eq!(got.unknown.is_some(), text == "$(NONE)");
        }
    }
}
