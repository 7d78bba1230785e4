//! Serves a configuration of static servers: `static_router --config FILE [--workers N]`.
//!
//! Prints where each service is served, one JSON object a line, and runs until it is killed.

use std::{path::PathBuf, process::ExitCode};

use router::{Config, Options, Surroundings};

fn main() -> ExitCode {
    match serve() {
        Ok(never) => never,
        Err(message) => {
            eprintln!("static_router: {message}");
            ExitCode::from(2)
        }
    }
}

fn serve() -> Result<ExitCode, String> {
    let mut args = std::env::args().skip(1);
    let (mut config, mut options) = (None, Options::new());
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--config" => config = Some(PathBuf::from(value)),
            "--workers" => {
                let workers = value.parse().map_err(|_| format!("--workers {value}: give a number"))?;
                options = options.workers(workers);
            }
            _ => return Err(format!("unknown flag {flag}: use --config FILE and --workers N")),
        }
    }
    let file = config.ok_or("give --config FILE")?;
    let config = Config::load(&file, Surroundings::default()).map_err(|error| error.to_string())?;
    let router = router::start(&config, options).map_err(|error| error.to_string())?;
    for serving in router.serving() {
        let (service, listen) = (&serving.service, serving.listen);
        println!("{{\"event\":\"serving\",\"service\":\"{service}\",\"listen\":\"{listen}\"}}");
    }
    loop {
        std::thread::park();
    }
}
