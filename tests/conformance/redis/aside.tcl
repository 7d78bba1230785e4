# Goes behind the suite's own client. What concerns one server is asked of the servers themselves, as a router's clients are told
# to do: their configuration, which many tests change first, their counts, by which tests wait for something, and to stop a script.
# Of several servers all are asked, and INFO is that of the one at which clients wait, if there is one.
rename ::redis::__dispatch__ ::redis::__routed__
set ::redis::aside {}

proc ::redis::__dispatch__ {id method args} {
    set beside [expr {[info exists ::redis::addr($id)] && [lindex $::redis::addr($id) 1] == $::port
        && $::redis::blocking($id) && !$::redis::deferred($id)}]
    set one [expr {[string tolower $method] in {config info}
        || [string tolower [concat $method [lindex $args 0]]] in {{script kill} {function kill}}}]
    if {!$beside || !$one} {
        return [uplevel 1 [list ::redis::__routed__ $id $method {*}$args]]
    }
    if {$::redis::aside eq {}} {
        foreach port $::env(REDIS_BEHIND) {
            lappend ::redis::aside [redis 127.0.0.1 $port]
        }
    }
    set said {}
    foreach server $::redis::aside {
        set answer [$server $method {*}$args]
        if {$said eq {} || [regexp {blocked_clients:[1-9]} $answer]} {
            set said $answer
        }
    }
    return $said
}
