//! Compiles regular expressions and tries each once, as configuration readers, routers and search
//! tools do at their start: trees, tables and automata of many sizes, built up and let go.
//!
//! One operation is one expression.

use regex::Regex;

use super::common::{LANES, Outcome, Params, mix, on_lanes, timed};

const EXPRESSIONS: u64 = 2_560;

/// `~` stands for a number that differs from one use to the next.
const PATTERNS: [&str; 24] = [
    r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z?~?$",
    r"(?i)\b[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,~}\b",
    r"^(GET|POST|PUT|DELETE|PATCH) /api/v~/users/(?P<id>[0-9]+)(/posts)?$",
    r"(foo|bar|baz|quux|corge|grault|garply|waldo|fred|plugh)~",
    r"^\s*(?:let|const|static)\s+(?:mut\s+)?([A-Za-z_]\w*)\s*:\s*(\w+~?)",
    r"(?x) ( \d{1,3} \. ){3} \d{1,3} (?: : ~ )?",
    r"[^\s]+\s+-\s+-\s+\[[^\]]+\]\s+~",
    r"(?m)^(warning|error)(\[E\d{4}\])?: (.*)~?$",
    r"((a|b)*c|(d|e)*f){1,4}~",
    r"\p{Greek}+|\p{Lu}\p{Ll}*~",
    r"<(?P<tag>[a-z][a-z0-9]*)\b[^>]*>(.*?)</[a-z][a-z0-9]*>~?",
    r"^~?([0-9a-fA-F]{8})-([0-9a-fA-F]{4})-([0-9a-fA-F]{4})",
    r"(?:[A-Z][a-z]+\s?){2,5}~",
    r"\bfn\s+(\w+)\s*(<[^>]*>)?\s*\(([^)]*)\)\s*(->\s*[^{]+)?\{~?",
    r"^(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.|$)){4}~?",
    r"~[.,](\d{3}[.,])*\d+([eE][+-]?\d+)?",
    r#""(?:[^"\\]|\\.)*"~?"#,
    r"(one|two|three|four|five|six|seven|eight|nine|ten)-?~",
    r"^/(?:[^/\x00]+/)*[^/\x00]+\.(?:rs|toml|md|lock|txt)~?$",
    r"\w+\s*=\s*(?:true|false|\d+|'[^']*')(?:\s*,\s*~)?",
    r"(?s)/\*.*?\*/~?|//[^\n]*",
    r"(?i:select)\s+.+\s+(?i:from)\s+\w+(\s+(?i:limit)\s+~)?",
    r"^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?~?$",
    r"[\u{4e00}-\u{9fff}]{2,}|[\u{3040}-\u{30ff}]+~",
];

const TEXT: &str = "2024-05-17T08:30:00Z GET /api/v3/users/42 from 10.0.0.7:5123, \
    mail to someone@example.org; let mut total: u64 = 17; // five-5 \
    error[E0382]: use of moved value; fn take(x: String) -> usize { x.len() } v1.2.3-beta";

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let each = params.count(EXPRESSIONS).div_ceil(LANES);
    Ok(timed(each * LANES, || {
        on_lanes(params.threads, |lane| {
            let mut random = params.random(lane);
            let mut sum = 0u64;
            // A handful stay alive, as the routes of a router do.
            let mut routes: Vec<Option<Regex>> = vec![None; 16];
            for _ in 0..each {
                let number = random.within(2, 9).to_string();
                let pattern = PATTERNS[random.below(PATTERNS.len())].replace('~', &number);
                let regex = Regex::new(&pattern).expect("a valid pattern");
                let found = regex.find(TEXT).map_or(0, |found| found.end() as u64);
                sum = sum.wrapping_add(mix(found ^ (regex.captures_len() as u64) << 32));
                routes[random.below(16)] = Some(regex);
            }
            sum
        })
    }))
}
