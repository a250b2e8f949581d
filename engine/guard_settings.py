"""The settings of the guard: who may try codes, how often. ``engine.settings`` reads them with all others."""

from __future__ import annotations

from dataclasses import dataclass

from engine.setting import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Blocks, proxies, limits, signatures and rules (docs/guard.md, docs/signing.md)."""

    blocks_max: int = setting(10_000, "maximum blocks and allows in force at a time", least=1)
    block_history_days: int = setting(
        7, "days for which a block that was lifted or has expired can be listed", least=0
    )
    trusted_proxies: str = setting(
        "", "addresses and networks of the proxies in front, separated by commas, such as 10.0.0.0/8"
    )
    client_address_header: str = setting(
        "",
        "header in which these proxies name the client: x-forwarded-for, forwarded, x-real-ip or another; "
        "empty means that the client is who connects",
    )
    proxy_protocol: bool = setting(
        False,  # noqa: FBT003 - its default
        "these proxies begin each connection with a PROXY header, version 2; every other one is closed",
    )
    guard_limits_mode: str = setting(
        "enforce",
        "mode of the limits: enforce: attempts beyond one get 429; observe: they are only counted; off",
    )
    guard_attempts_per_min: int = setting(
        0,
        "codes that one source may redeem, hold or check in a minute, found or not; 0 means no limit",
        least=0,
    )
    guard_attempts_burst: int = setting(
        10, "how many of these a source may try at once before REDEEM_GUARD_ATTEMPTS_PER_MIN counts", least=1
    )
    guard_checks_per_min: int = setting(
        0, "codes that one source may check in a minute; 0 means no limit", least=0
    )
    guard_checks_burst: int = setting(
        5, "how many codes a source may check at once before REDEEM_GUARD_CHECKS_PER_MIN counts", least=1
    )
    guard_requests_per_min: int = setting(
        30, "calls that one address may make in a minute with one browser key; 0 means no limit", least=0
    )
    guard_requests_burst: int = setting(
        5, "how many calls an address may make at once before REDEEM_GUARD_REQUESTS_PER_MIN counts", least=1
    )
    ratelimit_headers: bool = setting(
        False,  # noqa: FBT003 - its default
        "answers to browser keys say how many calls are left: the headers RateLimit and RateLimit-Policy",
    )
    guard_sources_max: int = setting(
        100_000,
        "maximum sources that a worker counts for each limit; beyond it only the latest half is surely kept",
        least=1,
    )
    guard_share_ms: int = setting(
        100, "how often a worker tells the others what sources have tried", least=10
    )
    signature_age_s_max: int = setting(
        300, "seconds for which the signature of a request is accepted after it was made", least=1
    )
    signature_ahead_s_max: int = setting(
        30,
        "seconds that the clock of a client may be ahead, when it signs a request or user token",
        least=0,
    )
    user_token_s_max: int = setting(900, "seconds for which a user token may be made", least=1)
    guard_challenge_s: int = setting(300, "seconds for which a challenge can be solved", least=1)
    guard_challenge_rounds: int = setting(
        5000, "how hard a challenge is: rounds of PBKDF2 for each of the about 256 keys to try", least=1
    )
    guard_asked_s: int = setting(
        600,
        "seconds for which a source or a browser key must solve challenges after a rule found it",
        least=1,
    )
    guard_guessable_bits: int = setting(
        30,
        "imported codes are guessable if a guess finds one with a chance of more than 1 in 2 to this power; "
        "pages must solve challenges for their campaigns; 0 means never",
        least=0,
    )
    guard_score_mode: str = setting("off", "mode of the rule score, which finds guessers")
    guard_honest_unknown_percent: int = setting(
        20, "codes never issued among those of an honest source, as the score supposes", least=1
    )
    guard_guesser_unknown_permille: int = setting(
        999, "the same of a source that guesses, in thousandths", least=1
    )
    guard_false_blocks_per_million: int = setting(
        10, "how often the score may be wrong about an honest source", least=1
    )
    guard_score_half_life_s: int = setting(600, "after how long a score is worth half", least=1)
    guard_codes_of_one_user_max: int = setting(
        3, "different codes of one user or device after which more do not count for its network", least=0
    )
    guard_retyped_weight_percent: int = setting(
        40, "how much a code counts that looks like one typed again", least=0
    )
    guard_retyped_distance_max: int = setting(
        2, "symbols by which a code may differ from one of the last four and be one typed again", least=0
    )
    guard_retyped_s: int = setting(
        60, "how long a worker remembers the last four codes of a source, in memory only", least=1
    )
    guard_slow_drip_mode: str = setting("off", "mode of the rule slow_drip, which finds slow guessers")
    guard_drip_codes_per_hour: int = setting(
        20,
        "different codes never issued in an hour, more than twice its successes, that block a source",
        least=1,
    )
    guard_drip_codes_per_day: int = setting(100, "the same in a day", least=1)
    guard_drip_hour_block_s: int = setting(3600, "how long the first of these blocks", least=1)
    guard_drip_day_block_s: int = setting(86_400, "how long the second blocks", least=1)
    guard_leaked_list_mode: str = setting(
        "off", "mode of the rule leaked_list, which finds lists of used codes"
    )
    guard_leaked_codes: int = setting(
        10, "different used-up codes from one source, more than successes, which make a leaked list", least=1
    )
    guard_leaked_s: int = setting(600, "seconds within which these come", least=1)
    guard_block_s: int = setting(600, "how long the first automatic block of a source lasts", least=1)
    guard_block_s_max: int = setting(
        86_400, "how long one lasts at most; each lasts twice as long as the one before", least=1
    )
    guard_block_jitter_percent: int = setting(
        10, "by how much the length of an automatic block varies", least=0
    )
    guard_server_key_mode: str = setting(
        "off", "mode of the rule server_key, an alert about many wrong codes"
    )
    guard_key_unknown_percent: int = setting(
        20, "share of codes never issued above which it raises an alert", least=1
    )
    guard_key_attempts_min: int = setting(200, "codes of the key that it takes for that", least=1)
    guard_key_s: int = setting(300, "seconds within which these come", least=1)
    guard_flood_mode: str = setting("off", "mode of the rule flood, which finds guessing from many places")
    guard_flood_codes_per_s: int = setting(
        5, "codes never issued in a second that are a flood at least", least=1
    )
    guard_flood_sigmas: int = setting(
        6, "standard deviations above the usual rate from which on they are", least=1
    )
    guard_flood_s: int = setting(30, "seconds over which they are counted", least=1)
    guard_alert_interval_s: int = setting(300, "seconds for which one alert counts its cause", least=1)
    guard_one_peer_percent: int = setting(
        80,
        "share of the calls with browser keys from one address above which no addresses are blocked by the "
        "guard, unless REDEEM_TRUSTED_PROXIES is set; 0 means never",
        least=0,
    )
    guard_one_peer_calls_min: int = setting(100, "calls that a worker takes for that", least=1)
    guard_one_peer_s: int = setting(300, "seconds within which these come", least=1)
    guard_blocks_max: int = setting(5000, "maximum automatic blocks in force at a time", least=1)
