# What runs on a device for vnode. POSIX sh alone: dash, bash and BusyBox's ash have been tried.
#
#   <this folder>/nodes/<node>/epoch                       who owns the node
#   <this folder>/nodes/<node>/watch/<pid>                 pipes of those who follow what happens
#   <this folder>/nodes/<node>/pods/<uid>/pod              what the pod is, for vnode
#   <this folder>/nodes/<node>/pods/<uid>/volumes/<name>   a folder, or a link to one
#   <this folder>/nodes/<node>/pods/<uid>/containers/<name>/<attempt>/
#       meta env cmd dir limits clock    what is to run, and what time it was when it was made
#       sup main exit                    its supervisor, its main process, its end
#       log.<n>                          its log, the newest with the highest number
#       root                             its mounts as links, and its working directory
#
# Times are those of /proc/uptime. The device's clock is not looked at: it may be wrong, and may jump.

VN_SH='@SHELL@'
LC_ALL=C
umask 077
read -r VN_BOOT < /proc/sys/kernel/random/boot_id

vn_up() { read -r VN_UP VN_REST < /proc/uptime; }

# The first line of what is asked for: the time, the boot, the address that was connected to.
vn_begin() {
  vn_up
  set -- $SSH_CONNECTION
  printf 'VNODE-BEGIN %s %s %s\n' "$VN_UP" "$VN_BOOT" "${3:--}"
}

# A refusal for people, and the end.
vn_refuse() { printf '%s\n' "$1" >&2; exit 65; }

# Makes what is missing of a path in a volume, and refuses one that leads out of it: pods make links, too.
vn_inside() { # volume path
  VN_REAL=$(cd "$1" && pwd -P) || exit 1
  VN_AT=$1 VN_LEFT=$2
  while [ -n "$VN_LEFT" ]; do
    VN_AT=$VN_AT/${VN_LEFT%%/*}
    case $VN_LEFT in */*) VN_LEFT=${VN_LEFT#*/} ;; *) VN_LEFT= ;; esac
    [ -e "$VN_AT" ] || [ -L "$VN_AT" ] || mkdir "$VN_AT" 2>/dev/null || [ -d "$VN_AT" ] || exit 1
    # What a link to a file leads to cannot be told by a shell alone.
    VN_IN=
    if [ -d "$VN_AT" ]; then VN_IN=$(cd "$VN_AT" && pwd -P); elif ! [ -L "$VN_AT" ]; then VN_IN=$VN_REAL; fi
    case $VN_IN/ in "$VN_REAL"/*) ;; *) vn_refuse "subPath $2 leads out of its volume" ;; esac
  done
}

vn_stat() { # pid
  { read -r VN_LINE < "/proc/$1/stat"; } 2>/dev/null || return 1
  VN_LINE=${VN_LINE##*) }
  set -f
  set -- $VN_LINE
  set +f
  VN_STATE=$1 VN_SID=$4 VN_START=${20}
  [ -n "$VN_START" ]
}

vn_alive() { # pid start
  vn_stat "$1" && [ "$VN_START" = "$2" ] && [ "$VN_STATE" != Z ] && [ "$VN_STATE" != X ]
}

# What this needs and does not have.
vn_missing() {
  for VN_T in cat chmod env ln ls mkdir mkfifo mv rm sleep tail uname wc; do
    command -v "$VN_T" >/dev/null 2>&1 || printf '%s ' "$VN_T"
  done
  [ -r /proc/self/stat ] || printf '/proc '
}

# Goes on only while nobody with a later epoch owns the node.
vn_own() { # node epoch
  VN_NODE=$VN_BASE/nodes/$1
  [ -d "$VN_NODE/pods" ] && [ -d "$VN_NODE/watch" ] || mkdir -p "$VN_NODE/pods" "$VN_NODE/watch" || exit 1
  VN_E=
  { read -r VN_E < "$VN_NODE/epoch"; } 2>/dev/null
  if [ -n "$VN_E" ] && [ "$VN_E" -gt "$2" ]; then
    printf '%s\n' "$VN_E" >&2
    exit 75
  fi
  [ "$VN_E" = "$2" ] || { printf '%s\n' "$2" > "$VN_NODE/epoch.$$" && mv -f "$VN_NODE/epoch.$$" "$VN_NODE/epoch"; } || exit 1
}

# created, running, exited <code> <uptime>, rebooted, lost
vn_state() { # folder
  VN_CLOCK= VN_MAIN= VN_SUP= VN_EXIT=
  { read -r VN_CLOCK < "$1/clock"; } 2>/dev/null
  { read -r VN_MAIN < "$1/main"; } 2>/dev/null
  { read -r VN_SUP < "$1/sup"; } 2>/dev/null
  if { read -r VN_EXIT < "$1/exit"; } 2>/dev/null; then
    VN_IS="exited $VN_EXIT"
    return
  fi
  if [ -z "$VN_SUP" ]; then
    VN_IS=created
    return
  fi
  VN_D=$1
  set -- $VN_SUP
  if [ "$3" != "$VN_BOOT" ]; then
    VN_IS=rebooted
  elif vn_alive "$1" "$2"; then
    if [ -n "$VN_MAIN" ]; then VN_IS=running; else VN_IS=created; fi
  elif { read -r VN_EXIT < "$VN_D/exit"; } 2>/dev/null; then
    # It ended while we looked.
    VN_IS="exited $VN_EXIT"
  elif [ -z "$VN_MAIN" ]; then
    VN_IS=created
  else
    VN_IS=lost
  fi
}

# A container on one line.
vn_record() { # folder
  { IFS= read -r VN_META < "$1/meta"; } 2>/dev/null || return 0
  vn_state "$1"
  printf 'C\t%s\t%s\t%s\t%s\n' "$VN_META" "${VN_CLOCK:--}" "${VN_MAIN:--}" "$VN_IS"
}

vn_list() {
  for VN_P in "$VN_NODE"/pods/*/; do
    { IFS= read -r VN_META < "$VN_P/pod"; } 2>/dev/null && printf 'P\t%s\n' "$VN_META"
    for VN_C in "$VN_P"containers/*/*/; do
      vn_record "${VN_C%/}"
    done
  done
}

# An environment is no text: its words end in NUL, and BusyBox's grep sees the first alone.
vn_greps() {
  VN_GREP=
  printf 'a\000b\000c' | grep -Fl c >/dev/null 2>&1 && VN_GREP=1
}

# The processes of a container that are there, but for its supervisor's: by its session, and by the mark in their
# environment, which those that have a session of their own still carry.
vn_processes() { # folder main-pid
  for VN_Q in /proc/[0-9]*; do
    VN_Q=${VN_Q#/proc/}
    [ -n "$2" ] || break
    vn_stat "$VN_Q" && [ "$VN_SID" = "$2" ] && [ "$VN_STATE" != Z ] && printf '%s ' "$VN_Q"
  done
  if [ -n "$VN_GREP" ]; then
    grep -Fls "VNODE_CONTAINER_ROOT=$1/root" /proc/[0-9]*/environ 2>/dev/null | while IFS=/ read -r VN_X VN_X VN_Q VN_X; do
      vn_stat "$VN_Q" && [ "$VN_STATE" != Z ] && printf '%s ' "$VN_Q"
    done
    return 0
  fi
  for VN_Q in /proc/[0-9]*; do
    while IFS= read -r VN_L || [ -n "$VN_L" ]; do
      case $VN_L in *"VNODE_CONTAINER_ROOT=$1/root"*) vn_stat "${VN_Q#/proc/}" && printf '%s ' "${VN_Q#/proc/}" ;; esac
    done < "$VN_Q/environ"
  done 2>/dev/null
  return 0
}

vn_kill_rest() { # folder main-pid
  vn_greps
  for VN_I in 1 2 3 4 5; do
    VN_PIDS=$(vn_processes "$1" "$2")
    [ -n "$VN_PIDS" ] || return 0
    kill -9 $VN_PIDS 2>/dev/null
  done
}

vn_signal() { # folder number
  vn_state "$1"
  [ "$VN_IS" = running ] || return 0
  VN_F=$1 VN_N=$2
  set -- $VN_MAIN
  vn_alive "$1" "$2" && kill "-$VN_N" "$1" 2>/dev/null
  [ "$VN_N" != 9 ] || vn_kill_rest "$VN_F" "$1"
  return 0
}

# Ends what runs, its supervisor too, and removes the folder.
vn_remove() { # folder
  [ -d "$1" ] || return 0
  vn_state "$1"
  VN_F=$1
  if [ -n "$VN_SUP" ]; then
    set -- $VN_SUP
    if [ "$3" = "$VN_BOOT" ]; then
      VN_S1=$1 VN_S2=$2
      VN_M=${VN_MAIN%% *}
      set -- $VN_MAIN
      # A number that is another process's by now has another start, and its session is not touched.
      { [ -n "$1" ] && vn_stat "$1" && [ "$VN_START" = "$2" ]; } || vn_alive "$VN_S1" "$VN_S2" || VN_M=
      vn_alive "$VN_S1" "$VN_S2" && kill -9 "$VN_S1" 2>/dev/null
      vn_kill_rest "$VN_F" "$VN_M"
    fi
  fi
  rm -rf "$VN_F" 2>/dev/null || rm -rf "$VN_F"
}

vn_remove_pod() { # uid
  VN_POD=$VN_NODE/pods/$1
  for VN_A in "$VN_POD"/containers/*/*/; do
    vn_remove "${VN_A%/}"
  done
  rm -rf "$VN_POD" 2>/dev/null || rm -rf "$VN_POD"
}

# A new version of a volume's files is shown at once: ..data is replaced as a whole where that can be done.
vn_show() { # volume version top...
  cd "$1" || exit 1
  VN_V=$2
  shift 2
  ln -sfn "$VN_V" ..data_tmp || exit 1
  mv -fT ..data_tmp ..data 2>/dev/null || { rm -f ..data_tmp; ln -sfn "$VN_V" ..data; } || exit 1
  for VN_T in "$@"; do
    [ -L "$VN_T" ] || ln -s "..data/$VN_T" "$VN_T" || exit 1
  done
  for VN_O in * .[!.]* ..?*; do
    [ -e "$VN_O" ] || [ -L "$VN_O" ] || continue
    [ "$VN_O" != "$VN_V" ] && [ "$VN_O" != ..data ] || continue
    for VN_T in "$@"; do
      [ "$VN_O" != "$VN_T" ] || continue 2
    done
    rm -rf "./$VN_O"
  done
  cd / || exit 1
}

vn_link() { # source link
  [ -e "$2" ] || [ -L "$2" ] || ln -s "$1" "$2"
}

# Starts a container that was made, and says what state it is in.
vn_start() { # folder
  vn_state "$1"
  if [ "$VN_IS" = created ]; then
    VN_SAID=$($VN_SH "$VN_HELPER" detach "$1" 2>/dev/null)
    case $VN_SAID in
      F*) printf '%s\n' "$VN_SAID"; return 0 ;;
      S*) ;;
      *) printf 'its supervisor did not start\n' >&2; exit 1 ;;
    esac
  fi
  vn_record "$1"
}

# A shell makes what it starts in the background deaf to interrupts for good. So the supervisor is one half of a
# pipeline; the other half hears that it has begun, and ends the shell that waits for both.
vn_detach() { # folder
  VN_SETSID=
  command -v setsid >/dev/null 2>&1 && VN_SETSID=setsid
  env -i PATH="$PATH" HOME="$HOME" ${USER:+USER="$USER"} $VN_SETSID $VN_SH "$VN_HELPER" supervise "$1" \
    </dev/null 2>/dev/null | { IFS= read -r VN_L; printf '%s\n' "$VN_L"; kill -9 $$; }
}

vn_supervise() { # folder
  cd "$1" || exit 1
  VN_DIR=$1
  trap : HUP INT TERM
  vn_stat $$
  . ./limits
  printf '%s %s %s\n' $$ "$VN_START" "$VN_BOOT" > sup.part && mv -f sup.part sup || { echo 'F the device cannot be written to'; exit 1; }
  exec 5>&1
  VN_CODE=$( { { { vn_wrap 2>/dev/null; } | vn_log o 3>&- 5>&- 6>&-; } 3>&1 >/dev/null | vn_log e 5>&- 6>&-; } 6>&1 )
  exec >/dev/null 5>&-
  if ! [ -e main ]; then
    # It could not be started, which was said.
    rm -f sup
    exit 0
  fi
  vn_up
  # A full disk is no reason to forget how it ended.
  until { printf '%s %s\n' "$VN_CODE" "$VN_UP" > exit.part && mv -f exit.part exit; } 2>/dev/null; do
    [ -d "$VN_DIR" ] || exit 0
    sleep 5
  done
  for VN_W in ../../../../../watch/*; do
    [ -p "$VN_W" ] && vn_record "$VN_DIR" 1<>"$VN_W"
  done
  exit 0
}

# Runs the main process to its end, and ends what it leaves behind. What shells say of processes that were killed is no
# part of the log, which is why there is a shell of its own around it.
vn_wrap() {
  (exec $VN_SH "$VN_HELPER" main "$VN_DIR" </dev/null 2>&3 3>&- 6>&-)
  VN_C=$?
  VN_M=
  { read -r VN_M VN_X < main; } 2>/dev/null
  [ -z "$VN_M" ] || vn_kill_rest "$VN_DIR" "$VN_M"
  printf '%s\n' "$VN_C" >&6
  # A process that has hidden itself may hold on to the log; that it ended must be told nevertheless. By a program of
  # its own, for this shell holds on to it, too.
  $VN_SH "$VN_HELPER" unlog "$VN_DIR" </dev/null >/dev/null 2>&1 3>&- 5>&- 6>&- &
}

vn_unlog() { # folder
  sleep 5
  for VN_T in o e; do
    { read -r VN_M VN_X < "$1/reader.$VN_T"; } 2>/dev/null && vn_alive "$VN_M" "$VN_X" && kill -9 "$VN_M"
  done
}

vn_main() { # folder
  cd "$1" || exit 126
  VN_DIR=$1
  vn_stat $$
  VN_ME="$$ $VN_START" VN_SETSID=
  command -v setsid >/dev/null 2>&1 && VN_SETSID=$(command -v setsid)
  . ./env
  . ./cmd
  . ./dir || { echo 'F the working directory cannot be entered' >&5; exit 126; }
  case $1 in
    */*)
      [ -e "$1" ] || { printf 'F exec: "%s": no such file or directory\n' "$1" >&5; exit 127; }
      [ -x "$1" ] && ! [ -d "$1" ] || { printf 'F exec: "%s": permission denied\n' "$1" >&5; exit 126; } ;;
    *) command -v "$1" >/dev/null 2>&1 || { printf 'F exec: "%s": executable file not found in $PATH\n' "$1" >&5; exit 127; } ;;
  esac
  vn_up
  { printf '%s %s\n' "$VN_ME" "$VN_UP" > "$VN_DIR/main.part" && mv -f "$VN_DIR/main.part" "$VN_DIR/main"; } 2>/dev/null ||
    { echo 'F the device cannot be written to: its disk may be full' >&5; exit 126; }
  echo S >&5
  exec 5>&-
  exec $VN_SETSID "$@"
}

# Lines with the time and where they come from. A line costs no process.
vn_log() { # o or e
  VN_N=1 VN_B=0 VN_O=
  # Of this part of the shell, which does not know its own number.
  { read -r VN_X VN_REST < /proc/self/stat && vn_stat "$VN_X" && printf '%s %s\n' "$VN_X" "$VN_START" > "reader.$1"; } 2>/dev/null
  if (printf ab | { read -r -n 1 VN_X && [ "$VN_X" = a ]; }) 2>/dev/null; then VN_O='-n 16384'; fi
  while :; do
    VN_L= VN_T=F
    if ! IFS= read -r $VN_O VN_L; then
      [ -n "$VN_L" ] || break
      VN_T=P
    elif [ -n "$VN_O" ] && [ ${#VN_L} -ge 16384 ]; then
      VN_T=P
    fi
    vn_up
    while [ -e "log.$((VN_N + 1))" ]; do VN_N=$((VN_N + 1)) VN_B=0; done
    printf '%s %s%s %s\n' "$VN_UP" "$1" "$VN_T" "$VN_L" >> "log.$VN_N"
    VN_B=$((VN_B + ${#VN_L} + 16))
    if [ "$VN_B" -ge "$VN_STEP" ]; then
      VN_B=0
      if [ "$(wc -c < "log.$VN_N")" -ge "$VN_LIMIT" ]; then
        : >> "log.$((VN_N + 1))"
        rm -f "log.$((VN_N + 1 - VN_FILES))"
      fi
    fi
  done 2>/dev/null
}

# How long to wait before looking at a log again.
vn_tick() { sleep 0.3 2>/dev/null || sleep 1; }

# Ends with who asked: the standard input stays open as long as the connection does.
vn_stay() {
  vn_stat $$
  VN_SINCE=$VN_START
  exec 4<&0
  { cat <&4; vn_alive $$ "$VN_SINCE" && kill -9 $$; } >/dev/null 2>&1 &
}

vn_logs() { # folder lines-or-all follow
  cd "$1" 2>/dev/null || { echo VNODE-GONE; exit 0; }
  vn_begin
  vn_state "$1"
  printf '%s\n' "${VN_CLOCK:--}"
  VN_H=0
  for VN_Q in log.*; do
    VN_Q=${VN_Q#log.}
    case $VN_Q in '' | *[!0-9]*) continue ;; esac
    [ "$VN_Q" -le "$VN_H" ] || VN_H=$VN_Q
  done
  if [ "$VN_H" = 0 ]; then
    VN_H=1
    [ "$3" = 1 ] || exit 0
    : >> log.1
  fi
  VN_L=$VN_H
  while [ -e "log.$((VN_L - 1))" ]; do VN_L=$((VN_L - 1)); done
  exec 3< "log.$VN_H"
  {
    while [ "$VN_L" -lt "$VN_H" ]; do cat "log.$VN_L" 2>/dev/null; VN_L=$((VN_L + 1)); done
    cat <&3
  } | if [ "$2" = all ]; then cat; else tail -n "$2"; fi
  [ "$3" = 1 ] || exit 0
  vn_stay
  VN_OVER=
  while :; do
    cat <&3
    if [ -e "log.$((VN_H + 1))" ]; then
      # The other stream's last line may still go to the old one.
      vn_tick
      cat <&3
      VN_H=$((VN_H + 1))
      exec 3< "log.$VN_H"
      continue
    fi
    [ -z "$VN_OVER" ] && [ -d "$1" ] || break
    vn_state "$1"
    case $VN_IS in
      running | created) vn_tick ;;
      *) VN_OVER=1 ;;
    esac
  done
  exit 0
}

# Tells of each container that ends, those that have ended already first.
vn_watch() { # node epoch
  vn_own "$1" "$2"
  # A watch whose connection is gone would not notice by itself.
  rm -f "$VN_NODE"/watch/*
  mkfifo "$VN_NODE/watch/$$" || exit 1
  exec 3<>"$VN_NODE/watch/$$"
  vn_begin
  for VN_C in "$VN_NODE"/pods/*/containers/*/*/exit; do
    [ -e "$VN_C" ] && vn_record "${VN_C%/exit}"
  done
  vn_stay
  while IFS= read -r VN_L <&3; do
    printf '%s\n' "$VN_L"
  done
  exit 0
}

# Runs a command where a container runs. Its words come with all but plain characters as octal numbers, since they
# pass through a login shell that may be any.
vn_exec() { # folder word...
  vn_state "$1"
  [ "$VN_IS" = running ] || { echo VNODE-GONE; exit 0; }
  exec env -i PATH="$PATH" HOME="$HOME" ${TERM:+TERM="$TERM"} $VN_SH "$VN_HELPER" enter "$@"
}

vn_enter() { # folder word...
  cd "$1" || { echo VNODE-GONE; exit 0; }
  VN_DIR=$1
  shift
  vn_stat $$
  # On a terminal there is one stream.
  [ -t 2 ] || printf 'VNODE-BEGIN\n' >&2
  printf 'VNODE-BEGIN %s %s -\n' $$ "$VN_START"
  VN_N=$#
  while [ "$VN_N" -gt 0 ]; do
    VN_A=$(printf "$1.")
    shift
    set -- "$@" "${VN_A%.}"
    VN_N=$((VN_N - 1))
  done
  . ./env
  . ./dir
  exec "$@"
}

# Ends a command that nobody waits for any more.
vn_end() { # pid start
  vn_alive "$1" "$2" || return 0
  if [ "$VN_SID" = "$1" ]; then
    for VN_Q in /proc/[0-9]*; do
      VN_Q=${VN_Q#/proc/}
      vn_stat "$VN_Q" && [ "$VN_SID" = "$1" ] && kill -9 "$VN_Q" 2>/dev/null
    done
  fi
  kill -9 "$1" 2>/dev/null
  return 0
}

# What a script that failed could not say: some shells call it an error of input and output.
vn_full() {
  df -Pk "$VN_BASE" 2>/dev/null | {
    read -r VN_X
    read -r VN_X VN_X VN_X VN_K VN_X
    [ "${VN_K:-99}" -ge 8 ] 2>/dev/null || echo 'No space left on the device' >&2
  }
}

vn_describe() {
  printf 'os %s\n' "$(uname -s)"
  printf 'arch %s\n' "$(uname -m)"
  printf 'kernel %s\n' "$(uname -r)"
  VN_N=0
  while read -r VN_K VN_X; do [ "$VN_K" != processor ] || VN_N=$((VN_N + 1)); done < /proc/cpuinfo
  [ "$VN_N" -gt 0 ] || VN_N=$(nproc 2>/dev/null)
  printf 'cpus %s\n' "$VN_N"
  while read -r VN_K VN_X; do [ "$VN_K" != MemTotal: ] || printf 'memory %s\n' "$VN_X"; done < /proc/meminfo
}

# All that is needed to tell what processes use, and which ports they listen on.
vn_table() {
  printf 'page %s\n' "$(getconf PAGESIZE 2>/dev/null || echo 4096)"
  printf 'processes\n'
  cat /proc/[0-9]*/stat 2>/dev/null
  return 0
}

# What went over the network, and how full the disk is.
vn_machine() {
  { while read -r VN_X; do printf 'net %s\n' "$VN_X"; done < /proc/net/dev; } 2>/dev/null
  { while read -r VN_X; do printf 'route %s\n' "$VN_X"; done < /proc/net/route; } 2>/dev/null
  df -Pk "$VN_BASE" 2>/dev/null | while read -r VN_X; do printf 'disk %s\n' "$VN_X"; done
  return 0
}

vn_sockets() { # pid...
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null
  for VN_Q in "$@"; do ls -l "/proc/$VN_Q/fd" 2>/dev/null; done
  return 0
}

case ${VN_HELPER-} in
  '')
    # Called by name, not read by a script.
    VN_HELPER=$0
    VN_BASE=${0%/*}
    VN_VERB=$1
    shift
    case $VN_VERB in
      logs | exec) VN_D="$VN_BASE/nodes/$1"; shift; "vn_$VN_VERB" "$VN_D" "$@" ;;
      *) "vn_$VN_VERB" "$@" ;;
    esac
    exit
    ;;
  *) VN_BASE=${VN_HELPER%/*} ;;
esac
