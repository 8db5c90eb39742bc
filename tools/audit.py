"""What tools/audit.sh runs: pip-audit on requirements with hashes, and a line for each finding."""

import json
import subprocess
import sys

NOT_AUDITED = 3


def summary(report: str) -> tuple[list[str], int]:
    """What pip-audit's JSON says.

    Args:
        report (str): Its standard output with `--format json`.

    Returns:
        tuple[list[str], int]: A line for each vulnerability and one about the whole, and the exit
        code: 1 if a package is vulnerable, NOT_AUDITED if nobody said anything of any. A package
        nobody knew is not one without faults.
    """
    try:
        packages = json.loads(report)['dependencies']
        if not all(isinstance(package, dict) for package in packages):
            raise TypeError('no list of packages')
    except (ValueError, KeyError, TypeError):
        why = 'the service that knows the vulnerabilities did not answer'
        return [f'not audited: {why}'], NOT_AUDITED
    lines = []
    for package in packages:
        for fault in package.get('vulns', []):
            fixed = ', '.join(fault.get('fix_versions', [])) or 'no version'
            name = ' '.join([fault['id'], *fault.get('aliases', [])])
            lines.append(f'{package["name"]} {package["version"]}: {name}; fixed in {fixed}')
    unknown = [package['name'] for package in packages if 'vulns' not in package]
    if len(unknown) == len(packages):
        why = 'the service that knows the vulnerabilities knew no package'
        return [f'not audited: {why}'], NOT_AUDITED
    text = f'{len(packages) - len(unknown)} of {len(packages)} packages audited'
    text += f' (not {", ".join(unknown)})' if unknown else ''
    return [*lines, f'{text}, {len(lines)} vulnerabilities'], int(bool(lines))


def main(files: list[str]) -> None:
    requirements = [word for file in files for word in ('--requirement', file)]
    command = [sys.executable, '-m', 'pip_audit', '--format', 'json', '--progress-spinner', 'off']
    try:
        ran = subprocess.run(
            [*command, '--disable-pip', '--require-hashes', '--timeout', '10', *requirements],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        print('not audited: no answer within five minutes')
        sys.exit(NOT_AUDITED)
    lines, code = summary(ran.stdout)
    print('\n'.join(lines))
    sys.exit(code)


if __name__ == '__main__':
    main(sys.argv[1:])
