//! Users and groups by name, from the image's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

/// LIMIT: bytes that are read of either file.
const FILE_LEN_MAX: u64 = 1 << 20;
/// LIMIT: groups of one user, as the kernel has it in older versions.
const GROUPS_MAX: usize = 32;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Beside `gid`.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// The account that `USER` of an image names.
pub(crate) fn find(user: &str, root: &Path) -> Result<Account, String> {
    let read = |name: &str| {
        let file = std::fs::File::open(root.join(name)).ok();
        let mut text = Vec::new();
        if let Some(file) = file {
            // A file that cannot be read names nobody.
            let _ =
                std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_LEN_MAX), &mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    account(user, &read("etc/passwd"), &read("etc/group"))
}

fn account(user: &str, passwd: &str, groups: &str) -> Result<Account, String> {
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let known = passwd.lines().find_map(|line| {
        let [found, _, uid, gid, _, home, ..] = fields(line)[..] else {
            return None;
        };
        (found == name || uid == name).then_some((found, uid, gid, home))
    });
    let number = |text: &str, what: &str| {
        let number: Result<u32, _> = text.parse();
        number.map_err(|_| format!("the image has no {what} {text:?}. It names one in USER"))
    };
    let mut account = match known {
        Some((_, uid, gid, home)) => Account {
            uid: number(uid, "user")?,
            gid: number(gid, "group")?,
            groups: Vec::new(),
            home: home.to_owned(),
        },
        None => Account {
            uid: number(name, "user")?,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        },
    };
    if !group.is_empty() {
        account.gid = group_number(group, groups).map_or_else(|| number(group, "group"), Ok)?;
    } else if let Some((found, ..)) = known {
        account.groups = member_of(found, groups);
    }
    Ok(account)
}

fn group_number(name: &str, groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| match fields(line)[..] {
        [found, _, gid, ..] if found == name => gid.parse().ok(),
        _ => None,
    })
}

fn member_of(user: &str, groups: &str) -> Vec<u32> {
    let of = groups.lines().filter_map(|line| match fields(line)[..] {
        [_, _, gid, members, ..] if members.split(',').any(|member| member == user) => {
            gid.parse().ok()
        }
        _ => None,
    });
    of.take(GROUPS_MAX).collect()
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App,,,:/home/app:/bin/sh\nbroken\n";
    const GROUP: &str =
        "root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nwheel:x:10:root,app\nodd:x:y:app\n";

    #[test]
    fn every_form_of_user() {
        let check = |user: &str, uid, gid, groups: &[u32], home: &str| {
            let found = account(user, PASSWD, GROUP).unwrap();
            assert_eq!(
                (found.uid, found.gid, found.home.as_str()),
                (uid, gid, home),
                "{user}"
            );
            assert_eq!(found.groups, groups, "{user}");
        };
        check("", 0, 0, &[10], "/root");
        check("app", 1000, 1001, &[50, 10], "/home/app");
        check("1000", 1000, 1001, &[50, 10], "/home/app");
        check("app:staff", 1000, 50, &[], "/home/app");
        check("app:7", 1000, 7, &[], "/home/app");
        check("4242", 4242, 0, &[], "/");
        check("4242:4243", 4242, 4243, &[], "/");
        for (user, says) in [
            ("nobody", "no user \"nobody\""),
            ("app:none", "no group \"none\""),
            ("-1", "no user"),
        ] {
            let error = account(user, PASSWD, GROUP).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        // An image from scratch has neither file.
        assert_eq!(account("", "", "").unwrap().home, "/");
    }

    proptest! {
        #[test]
        fn any_files_give_an_account_or_a_sentence(user in "\\PC{0,9}", passwd in "[a-z0-9:\n]{0,80}", group in "[a-z0-9:,\n]{0,80}") {
            let _ = account(&user, &passwd, &group);
        }
    }
}
