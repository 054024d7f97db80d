use std::process::{Command, Output};

use crate::fleet::Fleet;

fn run(program: &str, arguments: &[&str], environment: Option<&str>) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("GRAVWELL_DATA_DIR").env_remove("GRAVWELL_CONFIG");
    if let Some(directory) = environment {
        command.env("GRAVWELL_DATA_DIR", directory);
    }
    command.output().expect("runs")
}

/// The option overrides the environment, which overrides the configuration file.
#[test]
fn the_data_directory_is_that_of_the_option_then_of_the_environment_then_of_the_file() {
    let fleet = Fleet::new();
    let at = |name: &str| fleet.dir(name).display().to_string();
    let (option, environment, file) = (at("option"), at("environment"), at("file"));
    let text = format!("[Global]\nDatastore-Data-Dir={file}\nWebserver-Data-Dir={file}\n");
    let config = fleet.write_file("gravwell.conf", &text).display().to_string();
    // Each directory belongs to another role, and the error names it.
    let programs = [
        (env!("CARGO_BIN_EXE_gravwell_datastore"), "replica"),
        (env!("CARGO_BIN_EXE_gravwell_webserver"), "datastore"),
    ];
    for (program, role) in programs {
        for directory in [&option, &environment, &file] {
            std::fs::create_dir_all(directory).expect("creates");
            std::fs::write(format!("{directory}/role"), format!("{role}\n")).expect("writes");
        }
        let cases: [(&[&str], Option<&str>, &str); 3] = [
            (&["--config", &config, "--data-dir", &option], Some(&environment), &option),
            (&["--config", &config], Some(&environment), &environment),
            (&["--config", &config], None, &file),
        ];
        for (arguments, environment, expected) in cases {
            let output = run(program, arguments, environment);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{errors}");
            let named = [
                format!("{expected} is a {role}'s directory"),
                format!("{expected} is the data directory of a {role}"),
            ];
            assert!(named.iter().any(|named| errors.contains(named)), "{expected}: {errors}");
        }
    }
    // The tool does not read the file.
    let tool = env!("CARGO_BIN_EXE_gravwell-logctl");
    for (arguments, variable, expected) in [
        (&["--data-dir", &option, "status"][..], Some(environment.as_str()), option.as_str()),
        (&["status"][..], Some(environment.as_str()), environment.as_str()),
    ] {
        for directory in [&option, &environment] {
            std::fs::write(format!("{directory}/role"), "neither\n").expect("writes");
        }
        let output = run(tool, arguments, variable);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
}
