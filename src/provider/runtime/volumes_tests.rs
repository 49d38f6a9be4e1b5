use super::*;
use crate::provider::VolumeFile;

fn files(all: &[(&str, &str, u32)]) -> ResolvedVolume {
    let file = |(path, content, mode): &(&str, &str, u32)| VolumeFile {
        path: (*path).into(),
        content: content.as_bytes().to_vec().into(),
        mode: *mode,
        owner: None,
        secret: false,
    };
    ResolvedVolume::Files(FileSet { files: all.iter().map(file).collect() })
}

fn ensured(dir: &Path, volume: &ResolvedVolume) -> PathBuf {
    ensure(dir, "v", volume, None, &HostPaths::Refused).unwrap().unwrap()
}

#[test]
fn files_change_as_a_whole_behind_a_symlink() {
    let dir = tempfile::tempdir().unwrap();
    let at = ensured(dir.path(), &files(&[("a", "1", 0o644), ("sub/b", "2", 0o600)]));
    assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "1");
    assert_eq!(fs::read_link(at.join("a")).unwrap(), Path::new("..data/a"));
    assert_eq!(fs::metadata(at.join("sub/b")).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read_link(at.join(DATA)).unwrap();

    ensured(dir.path(), &files(&[("a", "1", 0o644), ("sub/b", "2", 0o600)]));
    assert_eq!(fs::read_link(at.join(DATA)).unwrap(), before, "what is the same is left alone");

    ensured(dir.path(), &files(&[("a", "3", 0o644), ("c", "4", 0o644)]));
    assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "3");
    assert!(!at.join("sub").exists() && at.join("c").exists(), "names that went are gone");
    let mut names: Vec<_> = fs::read_dir(&at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 4, "one version is kept: {names:?}");
}

#[test]
fn no_file_is_written_outside_its_volume() {
    for path in ["../x", "/etc/x", "a/../../x", "..data", "..x/y", ""] {
        let dir = tempfile::tempdir().unwrap();
        let made = ensure(dir.path(), "v", &files(&[(path, "evil", 0o644)]), None, &HostPaths::Refused);
        assert!(made.is_err(), "{path}");
        assert!(!dir.path().join("x").exists());
    }
}

#[test]
fn sub_paths_stay_inside_their_volume() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let at = ensured(dir.path(), &ResolvedVolume::EmptyDir { medium: String::new(), size_limit: None });
    assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o777);
    symlink(outside.path(), at.join("out")).unwrap();
    symlink("inner", at.join("in")).unwrap();
    let copy = dir.path().join("copy");
    for (sub_path, ok) in [
        ("a/b/c", true),
        ("./a", true),
        ("..", false),
        ("a/../../x", false),
        ("/etc", false),
        ("out", false),
        ("out/made", false),
    ] {
        let found = part(&at, Some(sub_path), false, &copy);
        assert_eq!(found.is_ok(), ok, "{sub_path}: {found:?}");
    }
    assert!(part(&at, Some("in/x"), false, &copy).is_err(), "a symlink to nothing is not followed");
    fs::create_dir(at.join("inner")).unwrap();
    let found = part(&at, Some("in/x"), false, &copy).unwrap();
    assert!(found.ends_with("inner/x"), "a symlink that stays inside is followed");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was made outside");
}

#[test]
fn a_part_of_generated_files_does_not_change_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let at = ensured(dir.path(), &files(&[("a", "1", 0o640)]));
    let copy = dir.path().join("parts/0");
    let source = part(&at, Some("a"), true, &copy).unwrap();
    ensured(dir.path(), &files(&[("a", "2", 0o640)]));
    assert_eq!(fs::read_to_string(&source).unwrap(), "1");
    assert_eq!(fs::metadata(&source).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(part(&at, Some("missing"), true, &copy).is_err());
}

#[test]
fn host_paths_are_only_what_the_node_allows() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    symlink("/etc", open.join("escape")).unwrap();
    fs::write(open.join("file"), "x").unwrap();
    let below = HostPaths::Below(vec![open.clone()]);
    for (path, kind, ok) in [
        (open.clone(), "", true),
        (open.join("file"), "File", true),
        (open.join("file"), "Directory", false),
        (open.join("new"), "", false),
        (open.join("new/deep"), "DirectoryOrCreate", true),
        (open.join("touched"), "FileOrCreate", true),
        (open.join("escape"), "", false),
        (open.join("escape/new"), "DirectoryOrCreate", false),
        (open.join("../secret"), "DirectoryOrCreate", false),
        (PathBuf::from("/etc"), "", false),
    ] {
        assert_eq!(host_path(&path, kind, &below).is_ok(), ok, "{} {kind}", path.display());
        assert!(host_path(&path, kind, &HostPaths::Refused).is_err());
    }
    assert!(!dir.path().join("secret").exists());
}

#[test]
fn two_writers_of_one_volume_leave_one_whole_version() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let versions = ["x", "y", "z"].map(|v| files(&[("a", &format!("{v}{round}"), 0o644)]));
        std::thread::scope(|scope| {
            for version in &versions {
                scope.spawn(|| ensured(dir.path(), version));
            }
        });
        let text = fs::read_to_string(dir.path().join("v/a")).unwrap();
        assert!(text.ends_with(&round.to_string()), "{text}");
    }
}
