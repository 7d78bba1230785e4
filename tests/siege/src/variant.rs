//! Configurations that differ in all that may change while clients are served.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use crate::{field::MORTAL, honest::Speaks};

/// The `n`th: maps, clones, leaders, weights, checks, passwords and options change, and a service that nobody uses comes and
/// goes. The first one is plain.
///
/// Of the servers that may be killed at least two are always there, so that one killed is never all.
pub fn text(n: u64, servers: &[Vec<SocketAddr>], directory: &Path) -> String {
    let at = n as usize;
    let partitions = [16, 4, 64, 5][at % 4];
    let mut text = String::new();
    for (place, speaks) in Speaks::ALL.into_iter().enumerate() {
        let name = speaks.name();
        let (of, column) =
            if speaks == Speaks::Tcp { (MORTAL..servers.len(), 1) } else { (0..MORTAL, place) };
        // Every other time one is missing; another one leads each time.
        let kept = of.len() - if of.len() > 2 { at % 2 } else { 0 };
        let listed = (0..kept).map(|nth| of.start + (at / 2 + nth) % of.len()).map(|server| {
            let weight = 1 + (at * 7 + server * 3) % 5;
            format!(
                "{{ addr = \"{}\", weight = {} }}",
                servers[server][column],
                if n == 0 { 1 } else { weight }
            )
        });
        let listed: Vec<String> = listed.collect();
        // Any free port stays the same one.
        text += &format!("[[service]]\nname = \"{name}\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"{name}\"\n");
        text += match speaks {
            Speaks::Http => "key = [\"header:x-key\", \"path:/items/{key}/*\"]\n",
            Speaks::Frames => "key = \"msgpack:/params/0\"\nread_methods = [\"get\"]\n",
            Speaks::Tcp => "key = \"source\"\n",
            Speaks::Redis | Speaks::Memcached => "",
        };
        match at % 5 {
            1 => text += "slow_start = \"2s\"\n",
            2 if speaks == Speaks::Http => text += "expose = true\nforwarded = true\n",
            3 if speaks == Speaks::Frames => text += "stamp = true\n",
            _ => {}
        }
        if at % 3 == 1 {
            let timeout = 300 + 100 * (at % 4);
            text += &format!(
                "[service.health]\ncheck = \"tcp\"\nevery = \"{}ms\"\ntimeout = \"{timeout}ms\"\n",
                200 + timeout
            );
        }
        if speaks == Speaks::Redis && at % 2 == 1 {
            let file = password(n, directory);
            text += &format!("[service.auth]\nserver_password_file = \"{}\"\n", file.display());
        }
        text += &format!(
            "[service.pmap]\nstyle = \"slots\"\npartitions = {partitions}\n[[service.racs]]\nname = \"r\"\nservers = [{}]\n",
            listed.join(", ")
        );
    }
    if at % 4 == 2 {
        text += &format!(
            "[[service]]\nname = \"guest{n}\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\n[service.pmap]\nstyle = \"slots\"\n\
             partitions = 4\n[[service.racs]]\nname = \"r\"\nservers = [\"{}\"]\n",
            servers[0][1]
        );
    }
    text
}

/// A file with a password that was never used before.
fn password(n: u64, directory: &Path) -> std::path::PathBuf {
    let file = directory.join("password");
    fs::write(&file, format!("password {n}\n")).expect("a file of our own");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a file of our own");
    file
}
