//! The download, against a local server that can cut connections, ignore ranges and serve damage.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::{fs, thread};

use flate2::{Compression, write::GzEncoder};
use secateur::data::cifar::{CIFAR10, Layout};
use secateur::data::download::{Archive, DownloadError, Outcome, fetch};
use secateur::data::{DataSet, SetKind};
use secateur::digest::sha256;
use secateur::files::Place;

use crate::common::program::{self, Done};

/// How the server treats one request; the last entry serves all further ones.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Good,
    /// Closes the connection after so many bytes of the body.
    CutAfter(usize),
    /// Sends the whole file whatever range was asked for.
    IgnoreRange,
    /// Sends from another byte than was asked for, and says so.
    OtherOffset,
    /// Answers with this status.
    Status(u16),
    /// Flips a bit in the middle.
    Corrupt,
    /// Sends one byte too many, and says so.
    Longer,
}

/// A server on a free local port; keeps the ranges that were asked for.
struct Server {
    url: String,
    ranges: Arc<Mutex<Vec<Option<usize>>>>,
}

impl Server {
    fn start(file: &'static [u8], behaviours: &[Behaviour]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/sets/", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (behaviours, asked) = (behaviours.to_vec(), ranges.clone());
        // Ends with the process: it only ever waits for a connection.
        thread::spawn(move || {
            for (request, stream) in listener.incoming().enumerate() {
                let behaviour = behaviours[request.min(behaviours.len() - 1)];
                // A client that hangs up early is part of the tests.
                let _ = answer(stream.unwrap(), file, behaviour, &asked);
            }
        });
        Self { url, ranges }
    }

    fn ranges(&self) -> Vec<Option<usize>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn answer(
    stream: TcpStream,
    file: &[u8],
    behaviour: Behaviour,
    asked: &Mutex<Vec<Option<usize>>>,
) -> std::io::Result<()> {
    let (mut range, mut path) = (None, String::new());
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
            range = value.trim().trim_end_matches('-').parse().ok();
        }
        if line.starts_with("GET") {
            path = line.split(' ').nth(1).unwrap_or_default().to_string();
        }
        line.clear();
    }
    asked.lock().unwrap().push(range);
    // The one file there is; anything else is an error that a test would see.
    let behaviour = match behaviour {
        Behaviour::Status(_) => behaviour,
        _ if path != "/sets/small.tar.gz" => Behaviour::Status(404),
        _ => behaviour,
    };
    let mut stream = reader.into_inner();
    let mut bytes = file.to_vec();
    match behaviour {
        Behaviour::Status(status) => {
            return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Behaviour::Corrupt => bytes[file.len() / 2] ^= 1,
        Behaviour::Longer => bytes.push(0),
        _ => {}
    }
    let start = match behaviour {
        Behaviour::IgnoreRange => None,
        Behaviour::OtherOffset => range.map(|start| start + 1),
        _ => range,
    };
    let body = &bytes[start.unwrap_or(0)..];
    match start {
        Some(start) => write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n",
            bytes.len() - 1,
            bytes.len()
        )?,
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    let sent = if let Behaviour::CutAfter(limit) = behaviour { body.len().min(limit) } else { body.len() };
    stream.write_all(&body[..sent])
}

/// A CIFAR-10 archive of zeros (label 0, black images): small when packed, whole when unpacked.
static FILE: LazyLock<Vec<u8>> =
    LazyLock::new(|| pack(&CIFAR10, &[("../../outside.txt", 3), ("readme.html", 5)]));
/// The same without its last file.
static INCOMPLETE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let layout = Layout { train_files: &CIFAR10.train_files[..4], ..CIFAR10 };
    pack(&layout, &[])
});

fn pack(layout: &Layout, others: &[(&str, usize)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut add = |name: &str, len: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_size(len as u64);
        header.set_mode(0o644);
        // Written directly: the safe setter refuses the name that climbs out of the folder, as it should.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, std::io::repeat(0).take(len as u64)).unwrap();
    };
    for (name, records) in layout.files() {
        add(&format!("{}/{name}", layout.folder), records * layout.record());
    }
    for &(name, len) in others {
        add(&format!("{}/{name}", layout.folder), len);
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn archive_of(bytes: &[u8]) -> Archive {
    Archive { layout: CIFAR10, file: "small.tar.gz".into(), bytes: bytes.len() as u64, sha256: sha256(bytes) }
}

fn get(server: &Server, out: &Path) -> Result<Outcome, DownloadError> {
    let mut last = 0;
    let result = fetch(&archive_of(&FILE), &server.url, out, &mut |bytes| last = bytes);
    if matches!(result, Ok(Outcome::Unpacked(_))) {
        assert_eq!(last, FILE.len() as u64, "progress reaches the end");
    }
    result
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_good_server_gives_the_set_and_a_second_call_nothing_to_do() {
    let out = tempfile::tempdir().unwrap();
    let server = Server::start(&FILE, &[Behaviour::Good]);
    let folder = out.path().join("cifar-10-batches-bin");
    assert_eq!(get(&server, out.path()).unwrap(), Outcome::Unpacked(folder.clone()));
    assert_eq!(names(out.path()), ["cifar-10-batches-bin"], "nothing else stays, inside or outside");
    assert_eq!(names(&folder).len(), 7);
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let zeros = sha256(&vec![0; 10_000 * CIFAR10.record()]);
    assert!(sums.lines().any(|line| line == format!("{zeros}  data_batch_1.bin")), "{sums}");
    let set = DataSet::open(SetKind::Cifar10, Some(out.path()), None, None).unwrap();
    assert_eq!((set.train.len(), set.test.len()), (50_000, 10_000));
    assert_eq!(get(&server, out.path()).unwrap(), Outcome::AlreadyThere(folder));
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn a_cut_connection_is_continued_where_it_broke() {
    let out = tempfile::tempdir().unwrap();
    let server =
        Server::start(&FILE, &[Behaviour::CutAfter(1000), Behaviour::CutAfter(500), Behaviour::Good]);
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    assert_eq!(server.ranges(), [None, Some(1000), Some(1500)]);
}

#[test]
fn an_interrupted_download_is_kept_and_continued_by_the_next_call() {
    let out = tempfile::tempdir().unwrap();
    let server = Server::start(&FILE, &[Behaviour::CutAfter(1000), Behaviour::CutAfter(0)]);
    let error = get(&server, out.path()).unwrap_err().to_string();
    let part = out.path().join("small.tar.gz.part");
    let kept =
        format!("1000 of {} bytes are kept in {}, run the same command again", FILE.len(), part.display());
    assert!(error.contains(&kept), "{error}");
    assert_eq!(fs::read(&part).unwrap(), FILE[..1000]);

    let server = Server::start(&FILE, &[Behaviour::Good]);
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    assert_eq!(server.ranges(), [Some(1000)]);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("small.tar.gz.part"), b"the wrong beginning").unwrap();
    let server = Server::start(&FILE, &[Behaviour::IgnoreRange]);
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    assert_eq!(server.ranges(), [Some(19)]);
}

#[test]
fn a_server_that_cannot_continue_is_named_with_what_to_do() {
    for (behaviour, answer) in
        [(Behaviour::OtherOffset, "it sends bytes 20-"), (Behaviour::Status(416), "it returns 416")]
    {
        let out = tempfile::tempdir().unwrap();
        let part = out.path().join("small.tar.gz.part");
        fs::write(&part, &FILE[..19]).unwrap();
        let server = Server::start(&FILE, &[behaviour]);
        let error = get(&server, out.path()).unwrap_err().to_string();
        assert!(error.contains("does not continue from byte 19") && error.contains(answer), "{error}");
        let advice = format!("remove {} and run again", part.display());
        assert!(error.contains(&advice) && fs::read(&part).unwrap() == FILE[..19], "{error}");
        // The advice helps.
        fs::remove_file(&part).unwrap();
        let server = Server::start(&FILE, &[Behaviour::Good]);
        assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    }
}

#[test]
fn what_an_unpacking_left_that_was_killed_goes() {
    let out = tempfile::tempdir().unwrap();
    let stray = |name: &str| {
        let path = out.path().join(name);
        fs::create_dir_all(path.join("cifar-10-batches-bin")).unwrap();
        path
    };
    let (old, new) = (stray(".unpacking-old"), stray(".unpacking-new"));
    let hours = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600);
    fs::File::open(&old).unwrap().set_modified(hours).unwrap();
    let server = Server::start(&FILE, &[Behaviour::Good]);
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    assert!(!old.exists() && new.exists(), "the other may be a process that lives");
}

#[test]
fn damage_on_the_way_is_seen_and_not_kept() {
    let out = tempfile::tempdir().unwrap();
    let server = Server::start(&FILE, &[Behaviour::Corrupt, Behaviour::Good]);
    let error = get(&server, out.path()).unwrap_err();
    assert!(matches!(error, DownloadError::Digest { .. }), "{error}");
    assert!(error.to_string().ends_with("the damaged download is removed, run again"), "{error}");
    assert!(names(out.path()).is_empty());
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
}

#[test]
fn wrong_answers_are_named() {
    let out = tempfile::tempdir().unwrap();
    let server = Server::start(&FILE, &[Behaviour::Status(404), Behaviour::Longer]);
    let error = get(&server, out.path()).unwrap_err().to_string();
    assert!(
        error.contains("small.tar.gz: the server answers 404, expected 200 or 206; check the address"),
        "{error}"
    );
    let error = get(&server, out.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("{} bytes, expected {}", FILE.len() + 1, FILE.len())), "{error}");

    // Nobody listens at the port of a server that is gone.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(&archive_of(&FILE), &format!("http://{gone}"), out.path(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, DownloadError::Interrupted { kept: 0, .. }), "{error}");
}

#[test]
fn the_command_ends_with_code_2_and_one_line() {
    let out = tempfile::tempdir().unwrap();
    let server = Server::start(&FILE, &[Behaviour::Status(503)]);
    let url = server.url.trim_end_matches("/sets/");
    let mut command =
        program::command(Path::new("."), ["data", "download", "cifar10", "--url", url, "--out"]);
    let (code, _, error) = Done::from(command.arg(out.path()).output().unwrap()).parts();
    assert_eq!(code, Some(2));
    let line = error.lines().last().unwrap();
    assert!(
        line.starts_with("error: http://127.0.0.1:") && line.contains("the server answers 503"),
        "{error}"
    );
}

#[test]
fn what_is_on_disk_is_never_destroyed() {
    let server = Server::start(&FILE, &[Behaviour::Good]);
    // A folder with something else in it.
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("cifar-10-batches-bin");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("test_batch.bin"), b"mine").unwrap();
    let error = get(&server, out.path()).unwrap_err().to_string();
    assert!(error.contains("is in the way") && error.contains("move it elsewhere"), "{error}");
    assert_eq!(fs::read(folder.join("test_batch.bin")).unwrap(), b"mine");
    // An archive that somebody put there: used if right, refused if wrong, kept in both cases.
    let out = tempfile::tempdir().unwrap();
    let whole = out.path().join("small.tar.gz");
    fs::write(&whole, b"not the archive").unwrap();
    let error = get(&server, out.path()).unwrap_err().to_string();
    assert!(error.contains("SHA-256") && error.ends_with("move it elsewhere to download it anew"), "{error}");
    assert_eq!(fs::read(&whole).unwrap(), b"not the archive");
    fs::write(&whole, &*FILE).unwrap();
    let unpacked = fetch(&archive_of(&FILE), &server.url, out.path(), &mut |_| ()).unwrap();
    assert!(matches!(unpacked, Outcome::Unpacked(_)));
    assert_eq!(names(out.path()), ["cifar-10-batches-bin", "small.tar.gz"]);
    assert_eq!(server.ranges(), [], "no request was needed");
}

/// Files of the right sizes are called whole only where their digests are known.
#[test]
fn zeros_and_damage_are_not_called_whole() {
    let server = Server::start(&FILE, &[Behaviour::Good]);
    let info = |out: &Path| {
        let mut command = program::command(Path::new("."), ["data", "info", "cifar10", "--data"]);
        Done::from(command.arg(out).output().unwrap()).parts()
    };
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("cifar-10-batches-bin");
    fs::create_dir(&folder).unwrap();
    for (name, records) in CIFAR10.files() {
        let file = fs::File::create(folder.join(name)).unwrap();
        file.set_len((records * CIFAR10.record()) as u64).unwrap();
    }
    assert_eq!(get(&server, out.path()).unwrap(), Outcome::Unverified(folder));
    let (code, stdout, _) = info(out.path());
    assert!(code == Some(0) && stdout.contains("sizes are right, content unverified"), "{stdout}");

    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("cifar-10-batches-bin");
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    let (code, stdout, _) = info(out.path());
    assert!(code == Some(0) && stdout.contains("digests right"), "{stdout}");
    // One pixel.
    let file = folder.join("data_batch_4.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[3073 * 500 + 7] = 1;
    fs::write(&file, &bytes).unwrap();
    let error = get(&server, out.path()).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, DownloadError::InTheWay { .. }) && text.contains("data_batch_4.bin: SHA-256"),
        "{text}"
    );
    let (code, _, stderr) = info(out.path());
    assert!(code == Some(2) && stderr.contains("data_batch_4.bin: SHA-256"), "{stderr}");
    bytes[3073 * 500 + 7] = 0;
    fs::write(&file, &bytes).unwrap();
    // A damaged list of digests proves nothing.
    fs::write(folder.join("SHA256SUMS"), [0xff; 600]).unwrap();
    let (code, _, stderr) = info(out.path());
    assert!(code == Some(2) && stderr.contains("SHA256SUMS") && stderr.lines().count() == 1, "{stderr}");
    fs::write(folder.join("SHA256SUMS"), "").unwrap();
    let error = get(&server, out.path()).unwrap_err().to_string();
    assert!(error.contains("found none for data_batch_1.bin"), "{error}");
    assert_eq!(server.ranges(), [None], "what is there is not downloaded over");
}

#[test]
fn an_archive_without_all_files_leaves_no_folder() {
    let out = tempfile::tempdir().unwrap();
    let server = Server::start(&INCOMPLETE, &[Behaviour::Good]);
    let error =
        fetch(&archive_of(&INCOMPLETE), &server.url, out.path(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("data_batch_5.bin missing"), "{error}");
    assert_eq!(names(out.path()), ["small.tar.gz.part"]);
}

#[test]
fn one_download_at_a_time_and_no_link_is_followed() {
    let server = Server::start(&FILE, &[Behaviour::Good]);
    let out = tempfile::tempdir().unwrap();
    let lock = Place::from(&out.path().join("small.tar.gz")).lock().unwrap();
    let error = get(&server, out.path()).unwrap_err().to_string();
    let holder = format!("another download into this folder: process {} (", std::process::id());
    assert!(error.contains(&holder), "{error}");
    drop(lock);
    assert_eq!(server.ranges(), [], "no request was made");

    // The part file as a link would write to where it points.
    let elsewhere = tempfile::tempdir().unwrap();
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let part = out.path().join("small.tar.gz.part");
    std::os::unix::fs::symlink(&victim, &part).unwrap();
    let error = get(&server, out.path()).unwrap_err().to_string();
    assert!(error.contains("small.tar.gz.part: a symbolic link"), "{error}");
    fs::remove_file(&part).unwrap();
    // Left by one that was killed while it unpacked, with a link in it for good measure.
    let staging = out.path().join(".unpacking-small.tar.gz");
    fs::create_dir(&staging).unwrap();
    std::os::unix::fs::symlink(&victim, staging.join("test_batch.bin")).unwrap();
    assert!(matches!(get(&server, out.path()), Ok(Outcome::Unpacked(_))));
    assert_eq!(names(out.path()), ["cifar-10-batches-bin"]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}
